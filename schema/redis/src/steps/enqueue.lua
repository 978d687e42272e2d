-- Enqueues turns of one shard: all of them or, where they do not fit, none. At most some thousand to a call: Lua unpacks no more.
--
-- KEYS the shared ones, then for each turn: agent, backlog, turn, idem (the turn key again where it has no key)
-- ARGV 1 most turns that may be open in this shard  2 most that one tenant may have open in it
--      then for each turn: turn id, agent id, priority, deadline_ms (0: none), not_before_ms (0: at once),
--      new_session (1 or 0), idempotency name ('-': none), digest of what is asked ('' where there is no such name), envelope
-- Reply {'ok', id, fresh, id, fresh, …} in the order given; fresh is 0 where the id is that of a turn enqueued earlier
--      under the same idempotency key, or of this very turn enqueued before
--      {'conflict', place (from 0), turn}: the turn at that place has the idempotency key of this earlier turn, and asks for
--      something else; nothing was written
--      {'full', whose ('': everybody's, else a tenant), open turns, limit, retry_after_ms}: nothing was written

local KEYS_A_TURN, ARGS_A_TURN = 4, 9
-- The end of the year 9999: later times are no times, and larger numbers lose digits.
local MAX_TIME_MS = 253402300799999
-- How many of the newest ends tell the pace of the queue, and bounds of what is told.
local PACE_ENDS, MIN_RETRY_MS, MAX_RETRY_MS = 100, 100, 60000

local function is_time(text)
  return text == '0' or (string.find(text, '^%d+$') and tonumber(text) <= MAX_TIME_MS)
end

-- When `room` places will be free, at the pace of the newest ends.
local function retry_after_ms(room)
  local ends = redis.call('XREVRANGE', EVENTS, '+', '-', 'COUNT', PACE_ENDS)
  if #ends == 0 then
    return MAX_RETRY_MS
  end
  local since_ms = NOW - split_id(ends[#ends][1])
  return math.max(MIN_RETRY_MS, math.min(MAX_RETRY_MS, math.ceil(since_ms / #ends * room)))
end

-- Whether any of the turns is in the queue already: one question in the place of one a turn.
local function any_known()
  local turn_keys = {}
  for k = SHARED + 3, #KEYS, KEYS_A_TURN do
    turn_keys[#turn_keys + 1] = KEYS[k]
  end
  return redis.call('EXISTS', unpack(turn_keys)) > 0
end

expect_shared()
local look_each_up = any_known()
local reply, fresh, seen, agents, opened, by_tenant = {'ok'}, {}, {}, {}, 0, {}
for i = 0, (#KEYS - SHARED) / KEYS_A_TURN - 1 do
  local k, a = SHARED + i * KEYS_A_TURN, 2 + i * ARGS_A_TURN
  local agent_key, backlog_key, turn_key, idem_key = KEYS[k + 1], KEYS[k + 2], KEYS[k + 3], KEYS[k + 4]
  local id, agent, priority, idem = ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 7]
  if not READY[priority] then
    return redis.error_reply('ERR unknown priority ' .. tostring(priority))
  end
  local wrong_time = not is_time(ARGV[a + 4]) and ARGV[a + 4] or not is_time(ARGV[a + 5]) and ARGV[a + 5]
  if wrong_time then
    return redis.error_reply('ERR ' .. wrong_time .. ' is no time in Unix milliseconds')
  end
  if not agents[agent_key] then
    ask('LLEN', backlog_key)
    agents[agent_key] = {state = ask('HGET', agent_key, 'state') or 'idle'}
  end
  local known = seen[turn_key]
  if idem ~= '-' then
    local first = seen[idem_key] or ask('GET', idem_key)
    if first then
      local turn, digest = string.match(first, '^(%S+) ?(%S*)$')
      if digest ~= '' and digest ~= ARGV[a + 8] then
        return {'conflict', i, turn}
      end
      known = known or turn
    end
  end
  known = known or (look_each_up and redis.call('EXISTS', turn_key) == 1 and id)
  seen[turn_key] = known or id
  if idem ~= '-' then
    seen[idem_key] = seen[idem_key] or (known or id) .. ' ' .. ARGV[a + 8]
  end
  if not known then
    local tenant = tenant_of(agent)
    opened, by_tenant[tenant] = opened + 1, (by_tenant[tenant] or 0) + 1
    fresh[#fresh + 1] = {k = k, a = a, tenant = tenant}
  end
  reply[#reply + 1] = known or id
  reply[#reply + 1] = known and 0 or 1
end
if opened == 0 then
  return reply
end

local limit, tenant_limit = tonumber(ARGV[1]), tonumber(ARGV[2])
local depth = counter('open:interactive') + counter('open:batch')
if depth + opened > limit then
  return {'full', '', depth, limit, retry_after_ms(depth + opened - limit)}
end
for tenant, more in pairs(by_tenant) do
  local open = counter(tenant .. ':open')
  if open + more > tenant_limit then
    return {'full', tenant, open, tenant_limit, retry_after_ms(open + more - tenant_limit)}
  end
end

local now = whole(NOW)
for _, turn in ipairs(fresh) do
  local k, a = turn.k, turn.a
  local agent_key, turn_key = KEYS[k + 1], KEYS[k + 3]
  local id, agent, priority, deadline_ms, not_before_ms = ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4], ARGV[a + 5]
  local entry = id .. ' ' .. priority .. ' ' .. now .. ' ' .. not_before_ms .. ' ' .. ARGV[a + 7]
  redis.call('HSET', turn_key, 'envelope', ARGV[a + 9], 'state', 'queued', 'agent', agent, 'entry', entry)
  if deadline_ms ~= '0' then
    redis.call('HSET', turn_key, 'deadline_ms', deadline_ms)
    redis.call('ZADD', DEADLINES, deadline_ms, agent .. ' ' .. entry)
  end
  if ARGV[a + 6] == '1' then
    redis.call('HSET', turn_key, 'new_session', '1')
  end
  if ARGV[a + 7] ~= '-' then
    redis.call('SET', KEYS[k + 4], id .. ' ' .. ARGV[a + 8])
  end
  redis.call('RPUSH', KEYS[k + 2], entry)
  count('open:' .. priority, 1)
  if agents[agent_key].state == 'idle' then
    local head = {text = entry, priority = priority, enqueued_ms = NOW, not_before_ms = tonumber(not_before_ms)}
    note_head(agent, head)
    make_runnable(agent_key, agent, {}, head)
    agents[agent_key].state = 'ready'
  elseif agents[agent_key].state == 'paused' or agents[agent_key].state == 'halted' then
    -- Held agents may be without work; any other has some, and is in the index.
    redis.call('ZADD', OPEN, 'NX', now, agent)
  end
end
count('enqueued', opened)
for tenant, more in pairs(by_tenant) do
  count(tenant .. ':open', more)
end
write_indexes()
write_counters()
return reply
