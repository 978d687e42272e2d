-- Gives agents that waited a ticket: for a retry or a scheduled turn that is due, or for a place among the running turns
-- of their tenant.
--
-- KEYS the shared ones, then for each agent: agent, backlog, parked
-- ARGV 1 turns of one tenant that may run at once (0: no limit)  2 '1': agents that wait for a time are due now, whatever
--      their time, then the agents' ids
-- Reply {how many agents got a ticket, why others cannot be read}

local TENANT_CAP, NOW_DUE, ARGS = tonumber(ARGV[1]), ARGV[2] == '1', 2
local KEYS_AN_AGENT = 3
-- When an agent that cannot be read is looked at again.
local PUT_OFF_MS = 5000

-- Tickets given to parked agents in this call, by tenant: more than there are places would be parked again.
local given = {}

-- Whether the agent's time has come, or its tenant has a place; forgets it where it does not wait any more.
local function is_due(agent, id, parked_key)
  if agent.state == 'delayed' then
    local due_ms = tonumber(redis.call('ZSCORE', DELAYED, id))
    return due_ms and (NOW_DUE or due_ms <= NOW)
  end
  if agent.state ~= 'parked' then
    -- Left over in an index; its state says where it really is.
    stop_waiting(id, parked_key)
    return false
  end
  local tenant = tenant_of(id)
  return TENANT_CAP == 0 or counter(tenant .. ':leased') + (given[tenant] or 0) < TENANT_CAP
end

local promoted = 0
local function promote(i)
  local k, id = SHARED + i * KEYS_AN_AGENT, ARGV[ARGS + i + 1]
  local agent_key, parked_key = KEYS[k + 1], KEYS[k + 3]
  local agent = fields(agent_key, {'state'})
  local head = ask('LINDEX', KEYS[k + 2], 0)
  expect(parked_key, 'zset')
  if is_due(agent, id, parked_key) then
    stop_waiting(id, parked_key)
    if head then
      if agent.state == 'parked' then
        given[tenant_of(id)] = (given[tenant_of(id)] or 0) + 1
      end
      -- The place was waited for: nobody who comes later takes it.
      add_ticket(agent_key, id, backlog_entry(head), 'place', agent.state == 'parked' and '1' or '')
      promoted = promoted + 1
    else
      make_runnable(agent_key, id, agent, nil)
    end
  end
end

-- Agents that cannot be read would fill the front of the line, and keep all others from being looked at.
local function promote_or_put_off(i)
  local ok, answer = pcall(promote, i)
  if not ok then
    redis.call('ZADD', DELAYED, 'XX', whole(NOW + PUT_OFF_MS), ARGV[ARGS + i + 1])
    error(answer)
  end
end

expect_shared()
local answers = each(#ARGV - ARGS, promote_or_put_off)
return {promoted, errors_in(answers)}
