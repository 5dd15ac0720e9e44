-- Sets a field, if it holds what is expected.
--
-- KEYS: values, leases, count
-- ARGV: 1 field, 2 value, 3 milliseconds that it shall live
--       4 'any', 'none' or 'is': there may be any value, has to be none, or 5 is it
-- Replies: 1 if it was set, else 0

local state = sweep()
local field, expects = ARGV[1], ARGV[4]
local found = redis.call('HGET', VALUES, field)
if (expects == 'none' and found) or (expects == 'is' and found ~= ARGV[5]) then
  return 0
end
set(state, field, ARGV[2], tonumber(ARGV[3]))
settle()
return 1
