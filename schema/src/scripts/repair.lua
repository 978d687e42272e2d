-- Gives agents whose token was lost (an operator's XDEL, a failover) a new one.
--
-- KEYS 1 ready:interactive  2 ready:batch  3 open, then for each agent: agent, backlog
-- ARGV the agents' ids
-- Reply how many agents got a new token

local READY = {interactive = KEYS[1], batch = KEYS[2]}
local OPEN = KEYS[3]
-- Issue of tokens is for these only; delayed, halted and paused agents have none by design.
local RUNNABLE = {idle = true, ready = true, leased = true}

local function last_delivered(stream)
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local found = {}
    for i = 1, #group, 2 do
      found[group[i]] = group[i + 1]
    end
    if found.name == GROUP then
      return found['last-delivered-id']
    end
  end
  return '0-0'
end

-- Whether some worker will still read the token, or holds it.
local function is_live(priority, token)
  local stream = READY[priority]
  if not stream or not token or #redis.call('XRANGE', stream, token, token) == 0 then
    return false
  end
  if pending(stream, token) then
    return true
  end
  local ms, seq = split_id(token)
  local last_ms, last_seq = split_id(last_delivered(stream))
  return ms > last_ms or (ms == last_ms and seq > last_seq)
end

expect(READY.interactive, 'stream')
expect(READY.batch, 'stream')
expect(OPEN, 'zset')

local repaired = 0
for i, id in ipairs(ARGV) do
  local agent_key, backlog_key = KEYS[2 + i * 2], KEYS[3 + i * 2]
  -- One agent with a key of a wrong type must not keep the others from being repaired.
  local sound = is_type(agent_key, 'hash') and is_type(backlog_key, 'list')
  local agent = sound and fields(agent_key, 'state', 'token', 'priority') or {}
  local head = sound and redis.call('LINDEX', backlog_key, 0)
  if not sound then
    -- Nothing is known of it; `doctor` and the agent's own steps say what is wrong.
  elseif not head then
    redis.call('ZREM', OPEN, id)
  elseif RUNNABLE[agent.state or 'idle'] and not is_live(agent.priority, agent.token) then
    if READY[agent.priority] and agent.token then
      drop_token(READY[agent.priority], agent.token)
    end
    local priority = string.match(head, '^%S+ (%S+)')
    priority = READY[priority] and priority or 'interactive'
    add_token(agent_key, id, READY[priority], priority)
    repaired = repaired + 1
  end
end
return repaired
