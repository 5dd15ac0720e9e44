-- A topic's stream: its meta and its entries.
--
-- Meta is a hash:
--   epoch, top     the stream's present name, and the offset of its last entry
--   floor          the highest offset that is not kept: kept are floor + 1 up to top, without a hole
--   bytes          of the payloads kept
--   oldest         when the first of them was appended, in milliseconds
--   server         the replication id of the server that wrote here last
--   takeovers      "epoch offset epoch offset ...": former epochs, and where the next one took over; oldest first
--   count, size, ttl   the bounds of the last append; absent before the first
--
-- Entries are a Redis stream with the ids 1-0, 2-0, 3-0 ..., each with the payload (p) and the time (t).
--
-- Meta is what counts. Entries that do not agree with it (some were evicted, or somebody else was here) are dropped:
-- who asks for them is told that they are trimmed, which is the truth, and nobody is shown a hole.

local META, ENTRIES = KEYS[1], KEYS[2]
local MONTH = 30 * 86400 * 1000
local TAKEOVERS = 16
local NAMES = {'epoch', 'top', 'floor', 'bytes', 'oldest', 'server', 'takeovers', 'count', 'size', 'ttl'}

-- Changes a value of meta; save() writes it.
local function put(stream, name, value)
  if stream[name] ~= value then
    stream[name] = value
    stream.changed[name] = true
  end
end

-- Forgets the entries, and that there were any.
local function drop(stream)
  put(stream, 'floor', stream.top)
  put(stream, 'bytes', 0)
  put(stream, 'oldest', 0)
  stream.dropped = true
end

-- A new epoch goes on where the present one stands: whoever stood there, or before, missed nothing (B6).
local function take_over(stream, fresh, server)
  local pairs_kept = {}
  for epoch, offset in string.gmatch(stream.takeovers, '(%S+) (%S+)') do
    pairs_kept[#pairs_kept + 1] = epoch .. ' ' .. offset
  end
  pairs_kept[#pairs_kept + 1] = stream.epoch .. ' ' .. digits(stream.top)
  local first = math.max(1, #pairs_kept - TAKEOVERS + 1)
  put(stream, 'takeovers', table.concat(pairs_kept, ' ', first))
  put(stream, 'epoch', fresh)
  put(stream, 'server', server)
  stream.taken_over = true
end

-- The stream as it stands, begun if there is none; *fresh* is the name of a new epoch, should one begin. Writes nothing.
local function load(fresh)
  local found = checked(META, redis.pcall('HMGET', META, unpack(NAMES)))
  local length = checked(ENTRIES, redis.pcall('XLEN', ENTRIES))
  local server = replication()
  local stream = {now = clock(), changed = {}, dropped = false, taken_over = false}
  if not found[1] then
    if redis.call('EXISTS', META) == 1 then
      damaged(META, 'has no epoch')
    end
    -- Whatever entries there are belong to an epoch that nobody knows any more.
    put(stream, 'epoch', fresh)
    put(stream, 'top', 0)
    put(stream, 'floor', 0)
    put(stream, 'bytes', 0)
    put(stream, 'oldest', 0)
    put(stream, 'server', server)
    put(stream, 'takeovers', '')
    stream.dropped = length > 0
    return stream
  end
  stream.epoch = found[1]
  stream.top = number(META, found[2])
  stream.floor = number(META, found[3])
  stream.bytes = number(META, found[4])
  stream.oldest = number(META, found[5])
  stream.server = found[6]
  stream.takeovers = found[7] or damaged(META, 'has no takeovers')
  if found[8] then
    stream.count = number(META, found[8])
    stream.size = number(META, found[9])
    stream.ttl = number(META, found[10])
  end
  if stream.server ~= server then
    take_over(stream, fresh, server)
  end
  if length ~= stream.top - stream.floor then
    drop(stream)
  end
  return stream
end

-- The payload of an entry if it is the one with this offset; else nil.
local function payload_of(entry, offset)
  local fields = entry[2]
  if entry[1] == digits(offset) .. '-0' and #fields == 4 and fields[1] == 'p' and tonumber(fields[4]) then
    return fields[2]
  end
  return nil
end

-- How many entries of average size to take at once, so that neither calls nor memory get many.
local function handful(stream, most)
  local average = stream.bytes / math.max(1, stream.top - stream.floor)
  return math.max(2, math.min(most, math.floor(1048576 / (average + 1))))
end

-- Drops the oldest entries until the bounds hold. The newest stays until it ages, however large it is.
-- Meta tells whether there is anything to do; entries are only looked at if so. With *late*, nothing is done before the
-- bounds are passed by that part of them: to look for each entry that comes whether one has to go would cost as much as
-- the entry.
local function trim(stream, count, size, ttl, late)
  local floor, top, bytes, oldest = stream.floor, stream.top, stream.bytes, stream.oldest
  local function too_much(part)
    return floor < top
      and (
        oldest <= stream.now - ttl - ttl * part
        or top - floor > count + count * part
        or (bytes > size + size * part and top - floor > 1)
      )
  end
  if stream.dropped or not too_much(late) then
    return
  end
  -- Mostly a few have come in, and so a few go; besides them the next is looked at, for its time.
  local step = math.min(handful(stream, 128), math.max(2, top - floor - count + 1))
  repeat
    local chunk = redis.call('XRANGE', ENTRIES, digits(floor + 1) .. '-0', '+', 'COUNT', step)
    if #chunk == 0 then
      return drop(stream)
    end
    for index = 1, #chunk do
      local payload = payload_of(chunk[index], floor + 1)
      if not payload then
        return drop(stream)
      end
      oldest = tonumber(chunk[index][2][4])
      if not too_much(0) then
        break
      end
      bytes = math.max(0, bytes - #payload)
      floor = floor + 1
      -- What comes next is as old as nothing is, until it is looked at.
      oldest = math.huge
    end
    step = handful(stream, 128)
  until oldest < math.huge or floor == top
  if floor == top then
    return drop(stream)
  end
  redis.call('XTRIM', ENTRIES, 'MINID', digits(floor + 1) .. '-0')
  put(stream, 'floor', floor)
  put(stream, 'bytes', bytes)
  put(stream, 'oldest', oldest)
end

-- ... to the bounds of the last append.
local function trim_as_told(stream, late)
  if stream.count then
    trim(stream, stream.count, stream.size, stream.ttl, late)
  end
end

-- Deletes entries that were dropped. Before others are added, and before the script ends.
local function forget_dropped(stream)
  if stream.dropped then
    redis.call('UNLINK', ENTRIES)
    stream.dropped = false
  end
end

-- Writes what was changed, and has meta outlive its last use by a month, and twice the ttl (H6).
local function save(stream)
  forget_dropped(stream)
  local values = {}
  for name in pairs(stream.changed) do
    local value = stream[name]
    values[#values + 1] = name
    values[#values + 1] = type(value) == 'number' and digits(value) or value
  end
  if #values > 0 then
    redis.call('HSET', META, unpack(values))
  end
  keep(META, math.max(MONTH, 2 * (stream.ttl or 0)))
end
