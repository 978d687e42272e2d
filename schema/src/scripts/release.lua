-- Gives a leased turn back: it stays the head of its backlog, its attempt is not counted, any worker may read it.
--
-- KEYS 1 agent  2 turn  3 ready:interactive  4 ready:batch
-- ARGV 1 agent id  2 worker  3 epoch
-- Reply 1 when done (now or before), 0 where the lease was lost; nothing was written

local READY = {interactive = KEYS[3], batch = KEYS[4]}
local epoch = ARGV[3]

expect(KEYS[1], 'hash')
expect(KEYS[2], 'hash')
expect(READY.interactive, 'stream')
expect(READY.batch, 'stream')
local agent = fields(KEYS[1], 'state', 'owner', 'epoch', 'token', 'priority', 'released')
if agent.released == epoch then
  return 1
end
if agent.state ~= 'leased' or agent.owner ~= ARGV[2] or agent.epoch ~= epoch or not READY[agent.priority] then
  return 0
end
local turn = fields(KEYS[2], 'attempts', 'barren')
local attempts, barren = tonumber(turn.attempts) or 1, tonumber(turn.barren) or 1

redis.call('HSET', KEYS[2], 'state', 'queued', 'attempts', attempts - 1, 'barren', barren - 1)
drop_token(READY[agent.priority], agent.token)
add_token(KEYS[1], ARGV[1], READY[agent.priority], agent.priority)
redis.call('HSET', KEYS[1], 'released', epoch)
return 1
