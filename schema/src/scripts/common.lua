-- What every step uses. Rule of all scripts: check everything, then write; a script that failed half way would have
-- written its first half.

local GROUP = 'workers'
local STREAMS = {interactive = true, batch = true}

-- Whether `key` holds a `want` or nothing.
local function is_type(key, want)
  local found = redis.call('TYPE', key).ok
  return found == 'none' or found == want, found
end

-- Stops the script, before its first write, where `key` holds something else than `want`.
local function expect(key, want)
  local fits, found = is_type(key, want)
  if not fits then
    error(redis.error_reply('WRONGTYPE ' .. key .. ' holds a ' .. found .. ', not a ' .. want))
  end
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Whole numbers as text: tostring() would write large ones with an exponent.
local function whole(number)
  return string.format('%.0f', number)
end

-- A counter's value; not a number stops the script, as INCRBY would after the first write.
local function counter(key)
  local value = tonumber(redis.call('GET', key) or 0)
  if not value then
    error(redis.error_reply('WRONGTYPE ' .. key .. ' holds no number'))
  end
  return value
end

-- The named fields of a hash, as a table; missing ones are nil.
local function fields(key, ...)
  local values, found = redis.call('HMGET', key, ...), {}
  for i, name in ipairs({...}) do
    found[name] = values[i] or nil
  end
  return found
end

-- An id of a stream as two numbers.
local function split_id(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

-- A pending token: its consumer and how often it was delivered; nil where it is not pending.
local function pending(stream, token)
  local found = redis.call('XPENDING', stream, GROUP, token, token, 1)[1]
  if found then
    return found[2], found[4]
  end
end

local function drop_token(stream, token)
  redis.call('XACK', stream, GROUP, token)
  redis.call('XDEL', stream, token)
end

-- Makes the agent readable by any worker: a new token in `stream`, which the agent's hash names.
local function add_token(agent_key, agent, stream, priority)
  local token = redis.call('XADD', stream, '*', 'agent', agent)
  redis.call('HSET', agent_key, 'state', 'ready', 'token', token, 'priority', priority)
  redis.call('HDEL', agent_key, 'owner', 'delivery')
end

-- Whether the agent is that of a turn which stands alone.
local function is_lone(agent)
  return string.find(agent, '/~', 1, true) ~= nil
end

-- The agent has no work: it keeps its epoch, or leaves no key where it was that of a lone turn.
local function make_idle(agent_key, agent)
  if is_lone(agent) then
    redis.call('DEL', agent_key)
  else
    redis.call('HSET', agent_key, 'state', 'idle')
    redis.call('HDEL', agent_key, 'token', 'priority', 'owner', 'delivery')
  end
end
