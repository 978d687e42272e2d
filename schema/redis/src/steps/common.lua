-- What every step uses. Rules of all scripts: check everything, then write; a script that failed half way would have
-- written its first half. The same call again gives the same answer. Every key is declared.
--
-- KEYS 1 ready:interactive  2 ready:batch  3 open  4 counters  5 delayed  6 events  7 dead  8 ended  9 capped
--      10 paused  11 streams  12 deadlines, then those of the items a script works on

local GROUP = 'workers'
local READY = {interactive = KEYS[1], batch = KEYS[2]}
local OPEN, COUNTERS, DELAYED, EVENTS, DEAD = KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local ENDED, CAPPED, PAUSED, STREAMS, DEADLINES = KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12]
local SHARED = 12

-- A command on `key`; an error names the key and stops the item, before its first write.
local function ask(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) == 'table' and reply.err then
    error(redis.error_reply(reply.err .. ' (' .. command .. ' ' .. key .. ')'))
  end
  return reply
end

-- Stops the script where `key` holds something else than a `want` or nothing.
local function expect(key, want)
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= want then
    error(redis.error_reply('WRONGTYPE ' .. key .. ' holds a ' .. found .. ', not a ' .. want))
  end
end

-- The keys that all agents of a shard share.
local function expect_shared()
  expect(READY.interactive, 'stream')
  expect(READY.batch, 'stream')
  expect(OPEN, 'zset')
  expect(COUNTERS, 'hash')
  expect(DELAYED, 'zset')
  expect(EVENTS, 'stream')
  expect(DEAD, 'stream')
  expect(ENDED, 'list')
  expect(CAPPED, 'set')
  expect(STREAMS, 'zset')
  expect(DEADLINES, 'zset')
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local NOW = now_ms()

-- Whole numbers as text: tostring() would write large ones with an exponent.
local function whole(number)
  return string.format('%d', number)
end

-- The named fields of a hash, as a table; missing and empty ones are nil.
local function fields(key, ...)
  local values, found = ask('HMGET', key, ...), {}
  for i = 1, #values do
    local value = values[i]
    if value and value ~= '' then
      found[select(i, ...)] = value
    end
  end
  return found
end

-- An id of a stream as two numbers.
local function split_id(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

-- What the key and its value take, in bytes, as Redis says after looking at so many parts of the value (0: at all of them).
-- A turn's fields differ too much for a sample.
local function bytes_of_key(key, parts)
  return redis.call('MEMORY', 'USAGE', key, 'SAMPLES', parts) or 0
end

local function tenant_of(agent)
  return string.match(agent, '^[^/]*')
end

-- Whether the agent is that of a turn which stands alone.
local function is_lone(agent)
  return string.find(agent, '/~', 1, true) ~= nil
end

-- Changes of counters are gathered and written once, at the end of a script.
local counted = {}

local function count(field, change)
  counted[field] = (counted[field] or 0) + change
end

local function counter(field)
  return (tonumber(redis.call('HGET', COUNTERS, field) or 0) or 0) + (counted[field] or 0)
end

local function write_counters()
  for field, change in pairs(counted) do
    if change ~= 0 and redis.call('HINCRBY', COUNTERS, field, whole(change)) == 0 then
      redis.call('HDEL', COUNTERS, field)
    end
  end
end

-- A turn's place in its backlog: `<turn> <priority> <enqueued_ms> <not_before_ms> <idempotency name or ->`.
local function backlog_entry(text)
  local turn, priority, enqueued_ms, not_before_ms, idem =
    string.match(text, '^(%S+) (%S+) (%d+) (%d+) (%S+)$')
  if not READY[priority] then
    error(redis.error_reply('ERR a backlog holds ' .. text .. ', which is no turn'))
  end
  return {
    text = text, turn = turn, priority = priority, enqueued_ms = tonumber(enqueued_ms),
    not_before_ms = tonumber(not_before_ms), idem = idem,
  }
end

-- A pending ticket: its consumer and how often it was delivered; nil where it is not pending.
local function pending(stream, ticket)
  local found = redis.call('XPENDING', stream, GROUP, ticket, ticket, 1)[1]
  if found then
    return found[2], found[4]
  end
end

-- Tickets to be dropped are gathered and dropped together, at the end of a script.
local dropped = {}

local function drop_ticket(stream, ticket)
  dropped[stream] = dropped[stream] or {}
  table.insert(dropped[stream], ticket)
end

local function drop_gathered()
  for stream, tickets in pairs(dropped) do
    redis.call('XACK', stream, GROUP, unpack(tickets))
    redis.call('XDEL', stream, unpack(tickets))
  end
end

-- The index of agents with work, that of ended turns, that of their streams, and that of deadlines: changed once, at the end of
-- a script.
local heads, ended, streams, past_deadlines = {}, {}, {}, {}

-- The agent's head is `head` now, or there is none.
local function note_head(agent, head)
  heads[agent] = head and whole(head.enqueued_ms) or ''
end

local function write_indexes()
  local opened, closed = {}, {}
  for agent, enqueued_ms in pairs(heads) do
    if enqueued_ms == '' then
      table.insert(closed, agent)
    else
      table.insert(opened, enqueued_ms)
      table.insert(opened, agent)
    end
  end
  if #closed > 0 then
    redis.call('ZREM', OPEN, unpack(closed))
  end
  if #opened > 0 then
    redis.call('ZADD', OPEN, unpack(opened))
  end
  if #ended > 0 then
    redis.call('RPUSH', ENDED, unpack(ended))
    redis.call('ZADD', STREAMS, unpack(streams))
  end
  if #past_deadlines > 0 then
    redis.call('ZREM', DEADLINES, unpack(past_deadlines))
  end
end

-- Makes the agent readable by any worker: a new ticket, which the agent's hash names. The ticket carries the head of
-- the backlog, so that whoever reads it knows the keys of the lease.
local function add_ticket(agent_key, agent, head, ...)
  local ticket = redis.call('XADD', READY[head.priority], '*', 'agent', agent, 'head', head.text)
  redis.call('HSET', agent_key, 'state', 'ready', 'ticket', ticket, 'priority', head.priority, 'owner', '',
    'continues', '0', ...)
end

-- The agent's next state, where no worker has it: a ticket for `head`, or waiting until the head is due, or held, or
-- nothing to do. `found` has the agent's field `hold`; what follows are more fields of the agent to be written.
local function make_runnable(agent_key, agent, found, head, ...)
  if not head and is_lone(agent) then
    redis.call('DEL', agent_key)
  elseif found.hold then
    redis.call('HSET', agent_key, 'state', found.hold, 'ticket', '', 'owner', '', 'hold', '', ...)
  elseif not head then
    redis.call('HSET', agent_key, 'state', 'idle', 'ticket', '', 'owner', '', ...)
  elseif head.not_before_ms > NOW then
    redis.call('HSET', agent_key, 'state', 'delayed', 'ticket', '', 'owner', '', ...)
    redis.call('ZADD', DELAYED, whole(head.not_before_ms), agent)
  else
    add_ticket(agent_key, agent, head, ...)
  end
end

-- The agent waits neither for a time nor for a place any more.
local function stop_waiting(agent, parked_key)
  redis.call('ZREM', DELAYED, agent)
  if redis.call('ZREM', parked_key, agent) == 1 and redis.call('EXISTS', parked_key) == 0 then
    redis.call('SREM', CAPPED, tenant_of(agent))
  end
end

-- Runs `work` for each of `items`; one that cannot be read must not cost the others their answers.
local function each(items, work)
  local reply = {}
  for i = 1, items do
    local ok, answer = pcall(work, i - 1)
    if ok then
      reply[i] = answer
    else
      reply[i] = {'error', type(answer) == 'table' and answer.err or tostring(answer)}
    end
  end
  drop_gathered()
  write_indexes()
  write_counters()
  return reply
end
