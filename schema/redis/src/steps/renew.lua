-- Keeps a worker's tickets from being reclaimed, and tells which leases it lost.
--
-- KEYS the shared ones, then for each ticket: agent
-- ARGV 1 worker, then for each ticket: ticket id, priority of its stream, epoch of the lease ('': read, not leased)
-- Reply {now_ms, {kept, kept, …}} in the order given: 1 kept, 0 lost

local WORKER = ARGV[1]

local function holds(agent_key, ticket, priority, epoch)
  if epoch == '' then
    return pending(READY[priority], ticket) == WORKER
  end
  -- One agent's broken key must not cost the others their leases.
  if redis.call('TYPE', agent_key).ok ~= 'hash' then
    return false
  end
  local agent = fields(agent_key, {'state', 'owner', 'epoch'})
  return agent.state == 'leased' and agent.owner == WORKER and agent.epoch == epoch
end

expect(READY.interactive, 'stream')
expect(READY.batch, 'stream')
local reply = {}
for i = 0, #KEYS - SHARED - 1 do
  local ticket, priority, epoch = ARGV[i * 3 + 2], ARGV[i * 3 + 3], ARGV[i * 3 + 4]
  local kept = holds(KEYS[SHARED + i + 1], ticket, priority, epoch)
  if kept then
    -- JUSTID: resets the idle time and leaves the delivery count.
    redis.call('XCLAIM', READY[priority], GROUP, WORKER, '0', ticket, 'JUSTID')
  end
  reply[#reply + 1] = kept and 1 or 0
end
return {NOW, reply}
