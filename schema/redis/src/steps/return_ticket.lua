-- Makes a ticket that was read but not leased readable by others, without waiting for it to idle.
--
-- KEYS the shared ones, then agent, backlog
-- ARGV 1 agent id  2 ticket id  3 priority of its stream  4 worker
-- Reply 1 when done, 0 where the ticket was not the caller's any more; nothing was written

local agent_key, backlog_key = KEYS[SHARED + 1], KEYS[SHARED + 2]
local agent_id, ticket, stream = ARGV[1], ARGV[2], READY[ARGV[3]]

expect(stream, 'stream')
expect(DELAYED, 'zset')
expect(COUNTERS, 'hash')
if pending(stream, ticket) ~= ARGV[4] then
  return 0
end
local agent = fields(agent_key, 'state', 'ticket', 'hold')
local head = ask('LINDEX', backlog_key, 0)
head = head and backlog_entry(head)
drop_ticket(stream, ticket)
-- Leased: the ticket was taken over from a silent worker, whose lease ends here.
if agent.ticket == ticket and (agent.state == 'ready' or agent.state == 'leased') then
  if agent.state == 'leased' then
    count(tenant_of(agent_id) .. ':leased', -1)
  end
  make_runnable(agent_key, agent_id, agent, head)
  write_counters()
end
drop_gathered()
return 1
