-- Gives agents whose ticket was lost (an operator's XDEL, a failover) a new one.
--
-- KEYS the shared ones, then for each agent: agent, backlog, parked
-- ARGV the agents' ids
-- Reply {how many agents got a new ticket, why others cannot be read}

local KEYS_AN_AGENT = 3

local function last_delivered(stream)
  local group = groups_in(redis.call('XINFO', 'GROUPS', stream))[GROUP]
  return group and group['last-delivered-id'] or '0-0'
end

-- Whether some worker will still read the ticket, or holds it.
local function is_live(priority, ticket)
  local stream = READY[priority]
  if not stream or not ticket or #redis.call('XRANGE', stream, ticket, ticket) == 0 then
    return false
  end
  if pending(stream, ticket) then
    return true
  end
  local ms, seq = split_id(ticket)
  local last_ms, last_seq = split_id(last_delivered(stream))
  return ms > last_ms or (ms == last_ms and seq > last_seq)
end

-- Whether the agent's state says that somebody will see to it, and nobody will.
local function is_stranded(agent, id, parked_key)
  if agent.state == 'delayed' then
    return not redis.call('ZSCORE', DELAYED, id)
  elseif agent.state == 'parked' then
    return not redis.call('ZSCORE', parked_key, id)
  end
  -- Halted and paused agents wait for an operator.
  local runnable = not agent.state or agent.state == 'idle' or agent.state == 'ready' or agent.state == 'leased'
  return runnable and not is_live(agent.priority, agent.ticket)
end

local repaired = 0
local function repair(i)
  local k, id = SHARED + i * KEYS_AN_AGENT, ARGV[i + 1]
  local agent_key, parked_key = KEYS[k + 1], KEYS[k + 3]
  local agent = fields(agent_key, {'state', 'ticket', 'priority'})
  local head = backlog_entry(ask('LINDEX', KEYS[k + 2], 0))
  expect(parked_key, 'zset')
  if not head then
    redis.call('ZREM', OPEN, id)
  elseif is_stranded(agent, id, parked_key) then
    if READY[agent.priority] and agent.ticket then
      drop_ticket(READY[agent.priority], agent.ticket)
    end
    unlease(id, agent)
    make_runnable(agent_key, id, {}, head)
    repaired = repaired + 1
  end
end

expect_shared()
local answers = each(#ARGV, repair)
return {repaired, errors_in(answers)}
