-- Makes a ticket that was read but not leased readable by others, without waiting for it to idle.
--
-- KEYS the shared ones, then agent, backlog
-- ARGV 1 agent id  2 ticket id  3 priority of its stream  4 worker
-- Reply 1 if done, 0 if the ticket was not the caller's any more; nothing was written

local agent_key, backlog_key = KEYS[SHARED + 1], KEYS[SHARED + 2]
local agent_id, ticket, stream = ARGV[1], ARGV[2], READY[ARGV[3]]

expect(stream, 'stream')
expect(OPEN, 'zset')
expect(DELAYED, 'zset')
expect(COUNTERS, 'hash')
if pending(stream, ticket) ~= ARGV[4] then
  return 0
end
local agent = fields(agent_key, {'state', 'ticket', 'hold'})
local head = backlog_entry(ask('LINDEX', backlog_key, 0))
drop_ticket(stream, ticket)
-- Leased: the ticket was taken over from a silent worker, whose lease ends here.
if stands_for(agent, ticket) then
  unlease(agent_id, agent)
  make_runnable(agent_key, agent_id, agent, head)
  if not head then
    note_head(agent_id, nil)
  end
end
drop_gathered()
write_indexes()
write_counters()
return 1
