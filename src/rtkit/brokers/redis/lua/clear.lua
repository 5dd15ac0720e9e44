-- Drops a stream and begins a new epoch, of which nobody's position is part. Idempotency keys stay.
--
-- KEYS: meta, entries
-- ARGV: 1 the name of the new epoch
-- Replies: the name of the new epoch

checked(META, redis.pcall('HLEN', META))
checked(ENTRIES, redis.pcall('XLEN', ENTRIES))
redis.call('UNLINK', META)
-- Without meta, whatever entries there are go too.
local stream = load(ARGV[1])
save(stream)
return stream.epoch
