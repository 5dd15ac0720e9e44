-- Extends leases.
--
-- KEYS: values, leases, count
-- ARGV: 1 milliseconds from now, then the fields
-- Replies: the fields that were gone

local state = sweep()
local ends = digits(state.now + tonumber(ARGV[1]))
local gone = {}
for index = 2, #ARGV do
  if redis.call('ZSCORE', LEASES, ARGV[index]) then
    redis.call('ZADD', LEASES, ends, ARGV[index])
  else
    gone[#gone + 1] = ARGV[index]
  end
end
settle()
return gone
