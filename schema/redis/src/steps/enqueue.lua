-- Enqueues turns of one shard: all of them or, if they do not fit, none.
--
-- KEYS the shared ones, then for each turn: agent, backlog, turn, its idempotency key if it has one, and its agent's transcript
--      if it names the turn before it
-- ARGV 1 most turns that may be open in this shard  2 most that one tenant may have open in it
--      then for each turn: turn id, agent id, its priority or, if there is more to say, `<priority> <deadline_ms, 0: none>
--      <not_before_ms, 0: at once> <new_session: 1 or 0> <idempotency name, -: none> <digest of what is asked, empty if there is
--      no such name> <the turn before it, empty if it may follow any>`, envelope
-- Reply {'ok', place (from 0), id, place, id, …} for each turn that is not new: it has the id of a turn enqueued earlier under
--      the same idempotency key, or is this very turn, enqueued before
--      {'conflict', place, id}: the turn at that place has the idempotency key of this earlier turn, and asks for something
--      else; nothing was written
--      {'stale', place, id}: the turn at that place would follow another turn of its agent than the one it names: this one, or
--      none (''); nothing was written
--      {'full', whose ('': everybody's, else a tenant), open turns, limit, retry_after_ms}: nothing was written

local ARGS, ARGS_A_TURN = 2, 4
-- To a call; Lua unpacks some thousand values and no more.
local MOST_TURNS = 1000
-- The end of the year 9999: later times are no times, and larger numbers lose digits.
local MAX_TIME_MS = 253402300799999
-- How many of the newest ends tell the pace of the queue, and bounds of what is told.
local PACE_ENDS, MIN_RETRY_MS, MAX_RETRY_MS = 100, 100, 60000

-- Without leading zeros: a backlog's entry is compared as text.
local function is_time(text)
  return text == '0' or (string.find(text, '^[1-9]%d*$') and tonumber(text) <= MAX_TIME_MS)
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

-- What an argument says that is more than a priority.
local function special_of(text)
  local priority, deadline_ms, not_before_ms, new_session, idem, digest, after =
    string.match(text, '^(%S+) (%S+) (%S+) ([01]) (%S+) (%S*) (%S*)$')
  if not READY[priority] then
    error(redis.error_reply('ERR unknown priority ' .. text))
  end
  for _, time in ipairs({deadline_ms, not_before_ms}) do
    if not is_time(time) then
      error(redis.error_reply('ERR ' .. time .. ' is no time in Unix milliseconds'))
    end
  end
  return {
    priority = priority, deadline_ms = deadline_ms, not_before_ms = not_before_ms, new_session = new_session == '1',
    idem = idem, digest = digest, after = there(after),
  }
end

expect_shared()
-- Of each turn: after which key and argument its own follow, its key, and what is special about it. Few are special, and a table
-- for each turn would take longer than a command of Redis.
local key_places, turn_keys, specials, turns, next_key = {}, {}, {}, 0, SHARED
-- If any turn names the turn before it: the ids that turns have already in place of those given, and of each agent the newest
-- turn that this call adds, as far as the first `looked_at` fresh ones tell.
local following
for a = ARGS, #ARGV - ARGS_A_TURN, ARGS_A_TURN do
  turns = turns + 1
  key_places[turns], turn_keys[turns] = next_key, KEYS[next_key + 3]
  next_key = next_key + 3
  if not READY[ARGV[a + 3]] then
    local special = special_of(ARGV[a + 3])
    specials[turns] = special
    if special.idem ~= '-' then
      next_key = next_key + 1
      special.key = KEYS[next_key]
    end
    if special.after then
      next_key = next_key + 1
      special.transcript = KEYS[next_key]
      following = following or {renamed = {}, newest = {}, looked_at = 0}
    end
  end
end
if turns > MOST_TURNS then
  return redis.error_reply('ERR a call takes ' .. MOST_TURNS .. ' turns at most, not ' .. turns)
end

-- One question in the place of one a turn.
local look_each_up = turns > 0 and redis.call('EXISTS', unpack(turn_keys)) > 0
local reply, fresh, seen, states, by_tenant = {'ok'}, {}, {}, {}, {}
local tenant, prefix = nil, '/'

-- The turn that a turn enqueued now would follow: the last one that waits or runs, else the last one that completed; '' if there
-- is neither. What failed, expired or was cancelled left its agent where it was.
local function head_of(agent_key, backlog_key, transcript_key)
  local newest = following.newest
  for i = following.looked_at + 1, #fresh do
    newest[KEYS[key_places[fresh[i]] + 1]] = ARGV[ARGS + (fresh[i] - 1) * ARGS_A_TURN + 1]
  end
  following.looked_at = #fresh
  if newest[agent_key] then
    return newest[agent_key]
  end
  local last = backlog_entry(ask('LINDEX', backlog_key, '-1'))
  if last then
    return last.turn
  end
  local entry = ask('LINDEX', transcript_key, '-1')
  return entry and turn_of_entry(entry) or ''
end

for turn = 1, turns do
  local k, a, turn_key, special = key_places[turn], ARGS + (turn - 1) * ARGS_A_TURN, turn_keys[turn], specials[turn]
  local id, agent, agent_key = ARGV[a + 1], ARGV[a + 2], KEYS[k + 1]
  if not states[agent_key] then
    -- An agent with a backlog has a ticket or waits for something, and is in the index.
    states[agent_key] = ask('LLEN', KEYS[k + 2]) > 0 and 'busy' or ask('HGET', agent_key, 'state') or 'new'
  end
  local known = seen[turn_key]
  if special and special.key then
    local first = seen[special.key] or ask('GET', special.key)
    if first then
      local first_id, digest = string.match(first, '^(%S+) ?(%S*)$')
      if digest ~= '' and digest ~= special.digest then
        return {'conflict', turn - 1, first_id}
      end
      known = known or first_id
    end
  end
  known = known or (look_each_up and redis.call('EXISTS', turn_key) == 1 and id)
  seen[turn_key] = known or id
  if special and special.key then
    seen[special.key] = seen[special.key] or (known or id) .. ' ' .. special.digest
  end
  if known then
    reply[#reply + 1] = turn - 1
    reply[#reply + 1] = known
    if following then
      following.renamed[id] = known
    end
  else
    if special and special.after then
      local head = head_of(agent_key, KEYS[k + 2], special.transcript)
      if head ~= (following.renamed[special.after] or special.after) then
        return {'stale', turn - 1, head}
      end
    end
    -- Neighbours are mostly of one tenant.
    if string.find(agent, prefix, 1, true) ~= 1 then
      tenant = tenant_of(agent)
      prefix = tenant .. '/'
    end
    by_tenant[tenant] = (by_tenant[tenant] or 0) + 1
    fresh[#fresh + 1] = turn
  end
end
local opened = #fresh
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

local plain, by_priority = ' ' .. NOW_TEXT .. ' 0 -', {interactive = 0, batch = 0}
for _, turn in ipairs(fresh) do
  local k, a, turn_key, special = key_places[turn], ARGS + (turn - 1) * ARGS_A_TURN, turn_keys[turn], specials[turn]
  local id, agent, priority, agent_key = ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], KEYS[k + 1]
  local rest, not_before_ms = plain, 0
  if special then
    priority, not_before_ms = special.priority, tonumber(special.not_before_ms)
    rest = ' ' .. NOW_TEXT .. ' ' .. special.not_before_ms .. ' ' .. special.idem
  end
  local entry = id .. ' ' .. priority .. rest
  redis.call('HSET', turn_key, 'envelope', ARGV[a + 4], 'state', 'queued', 'agent', agent, 'entry', entry)
  if special then
    if special.deadline_ms ~= '0' then
      redis.call('HSET', turn_key, 'deadline_ms', special.deadline_ms)
      redis.call('ZADD', DEADLINES, special.deadline_ms, agent .. ' ' .. entry)
    end
    if special.new_session then
      redis.call('HSET', turn_key, 'new_session', '1')
    end
    if special.key then
      redis.call('SET', special.key, id .. ' ' .. special.digest)
    end
  end
  redis.call('RPUSH', KEYS[k + 2], entry)
  by_priority[priority] = by_priority[priority] + 1
  local state = states[agent_key]
  if state == 'new' or state == 'idle' then
    local head = {text = entry, priority = priority, enqueued_ms = NOW, not_before_ms = not_before_ms}
    note_head(agent, head)
    make_runnable(agent_key, agent, {}, head)
    states[agent_key] = 'busy'
  elseif state == 'paused' or state == 'halted' then
    -- Held agents may be without work; any other has some, and is in the index.
    redis.call('ZADD', OPEN, 'NX', NOW_TEXT, agent)
  end
end
count('open:interactive', by_priority.interactive)
count('open:batch', by_priority.batch)
count('enqueued', opened)
for tenant, more in pairs(by_tenant) do
  count(tenant .. ':open', more)
end
write_indexes()
write_counters()
return reply
