-- A page of a stream, as it stands now.
--
-- KEYS: meta, entries
-- ARGV: 1 the name of a new epoch, should one begin
--       2 epoch and 3 offset of the position to read from; offset '' for none
--       4 entries at the most, 5 bytes of one answer (one entry comes anyway)
--       6 '1' for in reverse
--       7 count, 8 size, 9 ttl: bounds, in milliseconds, or '' for those of the last append alone
-- Replies: {epoch, top, floor, takeovers, the place that the page begins at, payloads, taken over}
--
-- Where a page begins is told by locate() and locate_back() of rtkit/streams.py; what is here is the same in Lua, and
-- a test holds the two together.

local since_epoch, since = ARGV[2], tonumber(ARGV[3])
local limit, most, reverse = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1'

-- Up to which offset the epoch asked about and the present one are the same stream; nil: nowhere.
local function shared(stream)
  if since_epoch == stream.epoch then
    return stream.top
  end
  local lowest = nil
  for epoch, offset in string.gmatch(stream.takeovers, '(%S+) (%d+)') do
    -- Of an epoch that is named twice, which names never are, the later counts.
    if epoch == since_epoch then
      lowest = tonumber(offset)
    elseif lowest then
      lowest = math.min(lowest, tonumber(offset))
    end
  end
  return lowest
end

-- The offset that the page begins behind; in reverse, that of its first entry.
local function begin(stream)
  local common = since and shared(stream)
  if reverse then
    if not common or since > common then
      return stream.top
    end
    return math.max(0, since - 1)
  end
  if not common or since < stream.floor then
    return stream.floor
  end
  if since > common then
    return math.max(common, stream.floor)
  end
  return since
end

-- The payloads behind *start*, or from it downwards; nil when the entries are not what meta says.
local function collect(stream, start)
  local payloads, size = {}, 0
  local wanted = math.min(limit, reverse and start - stream.floor or stream.top - start)
  while #payloads < wanted do
    local step = math.min(wanted - #payloads, handful(stream, 256))
    local chunk
    if reverse then
      chunk = redis.call('XREVRANGE', ENTRIES, digits(start - #payloads) .. '-0', '-', 'COUNT', step)
    else
      chunk = redis.call('XRANGE', ENTRIES, digits(start + #payloads + 1) .. '-0', '+', 'COUNT', step)
    end
    if #chunk == 0 then
      return nil
    end
    for index = 1, #chunk do
      local offset = reverse and start - #payloads or start + #payloads + 1
      local payload = payload_of(chunk[index], offset)
      if not payload then
        return nil
      end
      size = size + #payload
      if size > most and #payloads > 0 then
        return payloads
      end
      payloads[#payloads + 1] = payload
    end
  end
  return payloads
end

local stream = load(ARGV[1])
trim_as_told(stream, 0)
if ARGV[7] ~= '' then
  trim(stream, tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9]), 0)
end
local start = begin(stream)
local payloads = collect(stream, start)
if not payloads then
  drop(stream)
  start = begin(stream)
  payloads = {}
end
save(stream)
return {
  stream.epoch, stream.top, stream.floor, stream.takeovers, start, payloads, stream.taken_over and 1 or 0
}
