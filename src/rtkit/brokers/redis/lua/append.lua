-- Appends entries to a stream, one right after the other, and publishes each: all of them, or none.
--
-- KEYS: meta, entries, and the idempotency key of each entry that has one, in their order
-- ARGV: 1 the name of this call, which is that of a new epoch too, should one begin; the same when it is repeated
--       2 PUBLISH or SPUBLISH, 3 the channel
--       4 count, 5 size, 6 ttl: the bounds; milliseconds
--       7 the dedupe window in milliseconds
--       8 '1' if the answer is to be waited for on replicas
--       9 epoch and 10 offset where the stream has to stand; offset '' for anywhere
--       then for each entry: its payload, and '1' if it has an idempotency key
-- Replies: 'epoch top taken-over'                 appended; one string, because it is what has to be read most
--          {1, index, epoch, offset, index, ...}  entries whose key was used before; nothing was done
--          {2, epoch, top, taken over}            the stream stands elsewhere; nothing was appended

local call, command, channel = ARGV[1], ARGV[2], ARGV[3]
local count, size, ttl = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local FIRST = 11
-- The part of the bounds by which entries may pass them before they are trimmed.
local LATE = 1 / 8

-- Repeats come before everything: what was answered once is answered again, whatever became of the stream since.
local repeats, repeated, ours = {1}, {}, 0
local key_index = 2
for argument = FIRST, #ARGV, 2 do
  if ARGV[argument + 1] == '1' then
    key_index = key_index + 1
    local key = KEYS[key_index]
    local found = checked(key, redis.pcall('GET', key))
    if found then
      local epoch, offset, by = string.match(found, '^(%S+) (%d+) (%S+)$')
      if not epoch then
        damaged(key, 'is no idempotency key of rtkit')
      end
      repeats[#repeats + 1] = (argument - FIRST) / 2 + 1
      repeats[#repeats + 1] = epoch
      repeats[#repeats + 1] = tonumber(offset)
      repeated[#repeated + 1] = {key, found}
      if by == call then
        ours = ours + 1
        repeats.epoch, repeats.last = epoch, tonumber(offset)
      end
    end
  end
end
if #repeated > 0 then
  if ARGV[8] == '1' then
    -- WAIT waits for what its own connection wrote. So this has to write something, or it would wait for nothing.
    for _, each in ipairs(repeated) do
      redis.call('SET', each[1], each[2], 'KEEPTTL')
    end
  end
  if ours == key_index - 2 then
    -- This very call was here before, and its answer was lost: it is no repeat to whoever made it.
    local after = 0
    for argument = #ARGV, FIRST, -2 do
      if ARGV[argument] == '1' then
        break
      end
      after = after + 1  -- entries without a key behind the last one that has one
    end
    return repeats.epoch .. ' ' .. digits(repeats.last + after) .. ' 0'
  end
  return repeats
end

local stream = load(call)
-- As long as the bounds are the same, nobody can tell whether what is beyond them goes now or a little later: who reads
-- trims to the letter. But what went by the old ones must not come back by new ones.
if stream.count ~= count or stream.size ~= size or stream.ttl ~= ttl then
  trim_as_told(stream, 0)
end
local taken_over = stream.taken_over and 1 or 0
if ARGV[10] ~= '' and (ARGV[9] ~= stream.epoch or tonumber(ARGV[10]) ~= stream.top) then
  save(stream)
  return {2, stream.epoch, stream.top, taken_over}
end

forget_dropped(stream)
local before = stream.top
local bytes, top = stream.bytes, before
local time = digits(stream.now)
for argument = FIRST, #ARGV, 2 do
  top = top + 1
  local added = redis.pcall('XADD', ENTRIES, digits(top) .. '-0', 'p', ARGV[argument], 't', time)
  if type(added) == 'table' and added.err then
    if top > before + 1 or not string.find(added.err, 'equal or smaller', 1, true) then
      checked(ENTRIES, added)
    end
    -- Somebody else has added what stands higher: these are not our entries any more.
    drop(stream)
    forget_dropped(stream)
    bytes = 0
    redis.call('XADD', ENTRIES, digits(top) .. '-0', 'p', ARGV[argument], 't', time)
  end
  bytes = bytes + #ARGV[argument]
end
if stream.floor == before then
  put(stream, 'oldest', stream.now)
end
put(stream, 'top', top)
put(stream, 'bytes', bytes)
put(stream, 'count', count)
put(stream, 'size', size)
put(stream, 'ttl', ttl)

key_index = 2
for argument = FIRST, #ARGV, 2 do
  if ARGV[argument + 1] == '1' then
    key_index = key_index + 1
    local offset = before + (argument - FIRST) / 2 + 1
    redis.call('SET', KEYS[key_index], stream.epoch .. ' ' .. digits(offset) .. ' ' .. call, 'PX', ARGV[7])
  end
end
trim_as_told(stream, LATE)
save(stream)
-- Only to give memory back: what has aged is trimmed by whoever comes next.
keep(ENTRIES, ttl)

for argument = FIRST, #ARGV, 2 do
  publish(command, channel, stream.epoch, before + (argument - FIRST) / 2 + 1, ARGV[argument])
end
return stream.epoch .. ' ' .. digits(top) .. ' ' .. taken_over
