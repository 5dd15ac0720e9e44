-- How often a key was revised, and its fields, of one moment.
--
-- KEYS: values, leases, count
-- ARGV: 1 the name of a new epoch, should one begin
--       2 '1' if the fields are wanted too
-- Replies: {epoch, count, {field, value, field, ...}}; the epoch is '' if there is no count

local state = sweep()
local epoch, count = counted(state, ARGV[1])
return {epoch or '', count or 0, ARGV[2] == '1' and redis.call('HGETALL', VALUES) or {}}
