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

-- Of each type, the cheapest command that fails with WRONGTYPE on any other: TYPE takes nearly twice as long.
local LENGTH = {stream = 'XLEN', zset = 'ZCARD', hash = 'HLEN', list = 'LLEN', set = 'SCARD'}

-- Stops the script if `key` holds something else than a `want` or nothing.
local function expect(key, want)
  ask(LENGTH[want], key)
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

local SMALL = {[0] = '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'}

-- Whole numbers as text: tostring() would write large ones with an exponent. A number that is given to a command becomes text as a
-- float does, which takes longer than many a command: frequent steps give text.
local function whole(number)
  return SMALL[number] or string.format('%d', number)
end

local NOW = now_ms()
local NOW_TEXT = whole(NOW)

-- The value of a field; nil if it is missing or empty.
local function there(value)
  return value ~= '' and value or nil
end

-- The named fields of a hash, as a table; missing and empty ones are nil.
local function fields(key, names)
  local values, found = ask('HMGET', key, unpack(names)), {}
  for i = 1, #names do
    found[names[i]] = there(values[i])
  end
  return found
end

-- An id of a stream as two numbers.
local function split_id(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

-- Of a result stream: the newest entry's epoch, and the tokens published by the newest entry of a lease. Entries without an
-- event, and those of epochs above the agent's last one, are nobody's who had a lease: they only raise the next epoch.
local function published_in(result_key, last_epoch)
  local entries, top_epoch = ask('XREVRANGE', result_key, '+', '-', 'COUNT', '1'), nil
  while #entries > 0 do
    for _, entry in ipairs(entries) do
      local epoch, published = split_id(entry[1])
      top_epoch = top_epoch or epoch
      if epoch <= last_epoch and entry[2][1] == 'event' then
        return top_epoch, published
      end
    end
    entries = ask('XREVRANGE', result_key, '(' .. entries[#entries][1], '-', 'COUNT', '100')
  end
  return top_epoch or 0, 0
end

-- What the key and its value take, in bytes, as Redis says after looking at `parts` parts of the value (0: at all of them).
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

-- A turn's place in its backlog: `<turn> <priority> <enqueued_ms> <not_before_ms> <idempotency name or ->`. Nil of nil.
local function backlog_entry(text)
  if not text then
    return nil
  end
  local turn, priority, enqueued_ms, not_before_ms = string.match(text, '^(%S+) (%S+) (%d+) (%d+) %S+$')
  if not READY[priority] then
    error(redis.error_reply('ERR a backlog holds ' .. text .. ', which is no turn'))
  end
  return {
    text = text, turn = turn, priority = priority, enqueued_ms = tonumber(enqueued_ms),
    not_before_ms = tonumber(not_before_ms),
  }
end

-- A pending ticket: its consumer and how often it was delivered; nil if it is not pending.
local function pending(stream, ticket)
  local found = redis.call('XPENDING', stream, GROUP, ticket, ticket, '1')[1]
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
-- the backlog, so that its readers know the keys of the lease.
local function add_ticket(agent_key, agent, head, ...)
  local ticket = redis.call('XADD', READY[head.priority], '*', 'agent', agent, 'head', head.text)
  redis.call('HSET', agent_key, 'state', 'ready', 'ticket', ticket, 'priority', head.priority, 'owner', '',
    'continues', '0', ...)
end

-- The agent's next state, if no worker has it: a ticket for `head`, or waiting until the head is due, or held, or
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

-- Whether this ticket is the one that makes the agent run, or by which it runs.
local function stands_for(agent, ticket)
  return agent.ticket == ticket and (agent.state == 'ready' or agent.state == 'leased')
end

-- No worker has the agent any more: its place among those of its tenant is free.
local function unlease(agent, found)
  if found.state == 'leased' then
    count(tenant_of(agent) .. ':leased', -1)
  end
end

-- The agent waits neither for a time nor for a place any more.
local function stop_waiting(agent, parked_key)
  redis.call('ZREM', DELAYED, agent)
  if redis.call('ZREM', parked_key, agent) == 1 and redis.call('EXISTS', parked_key) == 0 then
    redis.call('SREM', CAPPED, tenant_of(agent))
  end
end

-- Why the items failed that did, out of the answers of `each`.
local function errors_in(answers)
  local errors = {}
  for _, answer in pairs(answers) do
    if type(answer) == 'table' and answer[1] == 'error' then
      table.insert(errors, answer[2])
    end
  end
  return errors
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
