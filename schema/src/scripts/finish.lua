-- Ends a leased turn.
--
-- KEYS as in conclude.lua
-- ARGV 1 agent id  2 turn id  3 worker  4 epoch  5 tokens published  6 outcome  7 End in its envelope
--      8 transcript entry in its envelope ('': none)  9 result_ttl_ms  10 outcome_ttl_ms
-- Reply {'done'}: ended, now or by the same call before
--      {'fenced'}: another lease took over, or the turn ended otherwise; nothing was written
--      {'gap', found}: the result stream does not end with the tokens given; nothing was written

local turn_id, worker, epoch, published = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])

expect_types()
local turn = fields(TURN, 'state', 'epoch')
if turn.state == 'ended' then
  return {turn.epoch == epoch and 'done' or 'fenced'}
end
local agent = fields(AGENT, 'state', 'owner', 'epoch')
if agent.state ~= 'leased' or agent.owner ~= worker or agent.epoch ~= epoch then
  return {'fenced'}
end
local head = backlog_entry(0)
if not head or head.turn ~= turn_id then
  return {'fenced'}
end
local top_epoch, found = result_top()
if top_epoch > tonumber(epoch) then
  return {'fenced'}
end
if found ~= published then
  return {'gap', found}
end

conclude({
  agent = ARGV[1], turn = turn_id, epoch = tonumber(epoch), published = published, outcome = ARGV[6], event = ARGV[7],
  entry = ARGV[8], keep_token = false, now = now_ms(), result_ttl_ms = ARGV[9], outcome_ttl_ms = ARGV[10],
})
return {'done'}
