-- Changes fields, counts it, and publishes that it was done; all of it or nothing.
--
-- KEYS: values, leases, count
-- ARGV: 1 the name of a new epoch, should one begin
--       2 PUBLISH or SPUBLISH, 3 the channel, 4 the payload
--       5 milliseconds that what is set shall live
--       6 how many fields something is expected of
--       for each of those, then for each change: the field, '1' if there is a value, the value or ''
-- Replies: {epoch, count}, or nil when a field holds something else

local state = sweep()
local FIRST = 7
local changes = FIRST + 3 * tonumber(ARGV[6])
for index = FIRST, changes - 1, 3 do
  local found = redis.call('HGET', VALUES, ARGV[index])
  local expected = ARGV[index + 1] == '1' and ARGV[index + 2]
  if found ~= expected then
    return false
  end
end

local epoch, count = counted(state, ARGV[1])
if not epoch then
  epoch, count = ARGV[1], 0
  redis.call('HSET', COUNT, 'epoch', epoch, 'server', replication())
end
count = count + 1
redis.call('HSET', COUNT, 'count', digits(count))
local ttl = tonumber(ARGV[5])
for index = changes, #ARGV, 3 do
  if ARGV[index + 1] == '1' then
    set(state, ARGV[index], ARGV[index + 2], ttl)
  else
    unset(ARGV[index])
  end
end
settle()
publish(ARGV[2], ARGV[3], epoch, count, ARGV[4])
return {epoch, count}
