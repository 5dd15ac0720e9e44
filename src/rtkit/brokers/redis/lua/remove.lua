-- Deletes a field, if it holds what is expected.
--
-- KEYS: values, leases, count
-- ARGV: 1 field
--       2 'any' or 'is': it may hold anything, or 3
-- Replies: 1 if it was deleted, else 0

sweep()
local found = redis.call('HGET', VALUES, ARGV[1])
if not found or (ARGV[2] == 'is' and found ~= ARGV[3]) then
  return 0
end
unset(ARGV[1])
settle()
return 1
