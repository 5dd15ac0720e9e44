-- What every script begins with.
--
-- Redis does not take back what a script wrote before it failed. So each script first reads and checks all it needs,
-- with pcall where a key may hold something else than it should, and only then writes.

-- Milliseconds, by this server's clock: the one that everybody shares. Asked once by each script, since it may go on
-- meanwhile.
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- A whole number in digits. Lua itself would write 1e+15.
local function digits(number)
  return string.format('%.0f', number)
end

-- Ends the script: a key of ours holds what we did not put there. Nothing was written, and somebody has to look at it.
local function damaged(key, what)
  error({err = 'RTDAMAGED the key ' .. key .. ' ' .. what})
end

-- The reply of a pcall, or the end of the script.
local function checked(key, reply)
  if type(reply) == 'table' and reply.err then
    if string.find(reply.err, '^%-?WRONGTYPE') then
      damaged(key, 'is of another type than rtkit gave it')
    end
    error(reply)
  end
  return reply
end

-- The whole number that *text* stands for, or the end of the script.
local function number(key, text)
  local found = text and tonumber(text)
  if not found or found < 0 or found ~= math.floor(found) or found > 9007199254740992 then
    damaged(key, 'has no number where rtkit wrote one')
  end
  return found
end

-- The name of this server's history (B6). It changes when a replica is promoted, and when a server starts anew: exactly
-- when writes that were acknowledged may be missing. The run id would not do: A, then B, then A again has A's.
local function replication()
  local found = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)')
  -- Without it every call would look like a takeover.
  return found or error({err = 'RTUNFENCED this server does not tell its master_replid, so that losses go unnoticed'})
end

-- Publishes, as the last thing that a script does. What the script wrote stays if this fails, so that nobody may say that
-- nothing was done.
local function publish(command, channel, epoch, offset, payload)
  local frame = '1 ' .. epoch .. ' ' .. digits(offset) .. '\n' .. payload
  local reply = redis.pcall(command, channel, frame)
  if type(reply) == 'table' and reply.err then
    error({err = 'RTUNPUBLISHED written, but not published: ' .. reply.err})
  end
end

-- Has *key* live for at least *life* milliseconds from now. What lives long enough is left alone: each change would go to
-- the replicas too.
local function keep(key, life)
  local left = redis.call('PTTL', key)
  if left ~= -2 and (left < life or left > 2 * life) then
    redis.call('PEXPIRE', key, digits(life + math.ceil(life / 4)))
  end
end
