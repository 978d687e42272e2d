-- Makes agents runnable again whose worker was silent for a whole lease: each gets a new ticket, behind those that wait
-- already, which any worker may read. The attempt that was under way counts; the next lease fences its worker.
--
-- KEYS the shared ones, then for each ticket: agent, backlog
-- ARGV 1 silence in milliseconds, then for each ticket: its entry id, priority of its stream, agent id ('': the entry is gone)
-- Reply {now_ms, {how many agents are runnable again, why others cannot be read}}

local LEASE_MS, ARGS, ARGS_A_TICKET, KEYS_A_TICKET = tonumber(ARGV[1]), 1, 3, 2

-- Whether nobody renewed the ticket for a whole lease.
local function is_silent(stream, ticket)
  local found = redis.call('XPENDING', stream, GROUP, ticket, ticket, 1)[1]
  return found and found[3] >= LEASE_MS
end

local reclaimed = 0
local function reclaim(i)
  local k, a = SHARED + i * KEYS_A_TICKET, ARGS + i * ARGS_A_TICKET
  local ticket, stream, id = ARGV[a + 1], READY[ARGV[a + 2]], ARGV[a + 3]
  if not is_silent(stream, ticket) then
    return
  end
  -- Even if its agent cannot be read: a ticket that stays silent would be looked at for ever.
  drop_ticket(stream, ticket)
  if id == '' then
    -- An operator deleted the entry; what its agent needs, a repair gives.
    return
  end
  local agent_key = KEYS[k + 1]
  local agent = fields(agent_key, {'state', 'ticket', 'hold'})
  local head = backlog_entry(ask('LINDEX', KEYS[k + 2], 0))
  if not stands_for(agent, ticket) then
    return
  end
  unlease(id, agent)
  make_runnable(agent_key, id, agent, head, 'delivery', '')
  if not head then
    note_head(id, nil)
  end
  reclaimed = reclaimed + 1
end

expect_shared()
local answers = each((#KEYS - SHARED) / KEYS_A_TICKET, reclaim)
return {NOW, {reclaimed, errors_in(answers)}}
