-- Keyed state: fields with a lease each, and how often they were revised.
--
-- VALUES   hash         field -> value
-- LEASES   sorted set   field -> when its lease ends, in milliseconds
-- COUNT    hash         epoch, count: of revisions; server: the replication id of the server that counted last
--
-- All three go when the last lease has ended, and so the next revision begins a new epoch.

local VALUES, LEASES, COUNT = KEYS[1], KEYS[2], KEYS[3]
-- Arguments that one command is given at the most: Lua's stack has an end.
local AT_ONCE = 1000

-- Sweeps out what has run out; afterwards every field that is there is alive.
local function sweep()
  local fields = checked(VALUES, redis.pcall('HLEN', VALUES))
  local leases = checked(LEASES, redis.pcall('ZCARD', LEASES))
  local counted = checked(COUNT, redis.pcall('HLEN', COUNT))
  local state = {now = clock(), fields = fields, counted = counted > 0}
  if fields ~= leases then
    -- One of the keys was evicted, or somebody else was here. Without its lease a field would stay for ever.
    redis.call('UNLINK', VALUES, LEASES, COUNT)
    state.fields, state.counted = 0, false
    return state
  end
  while state.fields > 0 do
    local due = redis.call('ZRANGEBYSCORE', LEASES, '-inf', digits(state.now), 'LIMIT', 0, AT_ONCE)
    if #due == 0 then
      break
    end
    redis.call('ZREM', LEASES, unpack(due))
    redis.call('HDEL', VALUES, unpack(due))
    state.fields = state.fields - #due
  end
  if state.fields == 0 and state.counted then
    redis.call('UNLINK', COUNT)
    state.counted = false
  end
  return state
end

-- Sets a field for *ttl* milliseconds.
local function set(state, field, value, ttl)
  redis.call('HSET', VALUES, field, value)
  redis.call('ZADD', LEASES, digits(state.now + ttl), field)
end

-- Deletes a field.
local function unset(field)
  redis.call('HDEL', VALUES, field)
  redis.call('ZREM', LEASES, field)
end

-- Has the three keys end with the last lease; without any, now.
local function settle()
  local last = redis.call('ZREVRANGE', LEASES, 0, 0, 'WITHSCORES')[2]
  if not last then
    redis.call('UNLINK', VALUES, LEASES, COUNT)
    return
  end
  last = tonumber(last)
  for _, key in ipairs(KEYS) do
    local ends = redis.call('PEXPIRETIME', key)
    if ends ~= -2 and ends ~= last then
      redis.call('PEXPIREAT', key, digits(last))
    end
  end
end

-- How often it was revised: epoch and count; nil when it never was. A server that another one counted on before begins a
-- new epoch: revisions may be missing that were acknowledged, and their numbers must not be given out again.
local function counted(state, fresh)
  if not state.counted then
    return nil
  end
  local found = redis.call('HMGET', COUNT, 'epoch', 'count', 'server')
  if not found[1] then
    damaged(COUNT, 'has no epoch')
  end
  local epoch, count, server = found[1], number(COUNT, found[2]), replication()
  if found[3] ~= server then
    epoch, count = fresh, 0
    redis.call('HSET', COUNT, 'epoch', epoch, 'count', '0', 'server', server)
  end
  return epoch, count
end
