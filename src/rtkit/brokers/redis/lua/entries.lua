-- All fields whose lease has not run out.
--
-- KEYS: values, leases, count
-- Replies: {field, value, field, ...}

sweep()
return redis.call('HGETALL', VALUES)
