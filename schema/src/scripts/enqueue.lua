-- Enqueues turns of one shard: all of them or, where they do not fit, none.
--
-- KEYS 1 ready:interactive  2 ready:batch  3 open  4 depth
--      then for each turn: agent, backlog, turn, idem (the turn key again where it has no idempotency key)
-- ARGV 1 most turns that may be open in this shard
--      then for each turn: turn id, agent id, priority, deadline_ms (0: none), new_session (1 or 0),
--      idempotency name ('-': none), envelope
-- Reply {'ok', id, fresh, id, fresh, …} in the order given; fresh is 0 where the id is that of a turn enqueued earlier
--      under the same idempotency key, or of this very turn enqueued before
--      {'full', open turns, limit}: nothing was written

local READY = {interactive = KEYS[1], batch = KEYS[2]}
local OPEN, DEPTH = KEYS[3], KEYS[4]
local limit = tonumber(ARGV[1])

expect(READY.interactive, 'stream')
expect(READY.batch, 'stream')
expect(OPEN, 'zset')
expect(DEPTH, 'string')
local depth = counter(DEPTH)

local reply, fresh, seen = {'ok'}, {}, {}
for i = 0, (#KEYS - 4) / 4 - 1 do
  local k, a = 4 + i * 4, 1 + i * 7
  local turn = {
    agent_key = KEYS[k + 1], backlog_key = KEYS[k + 2], turn_key = KEYS[k + 3], idem_key = KEYS[k + 4],
    id = ARGV[a + 1], agent = ARGV[a + 2], priority = ARGV[a + 3], deadline_ms = ARGV[a + 4],
    new_session = ARGV[a + 5], idem = ARGV[a + 6], envelope = ARGV[a + 7],
  }
  if not STREAMS[turn.priority] then
    return redis.error_reply('ERR unknown priority ' .. tostring(turn.priority))
  end
  expect(turn.agent_key, 'hash')
  expect(turn.backlog_key, 'list')
  expect(turn.turn_key, 'hash')
  local known = seen[turn.idem_key] or seen[turn.turn_key]
  if turn.idem ~= '-' then
    expect(turn.idem_key, 'string')
    known = known or redis.call('GET', turn.idem_key)
  end
  if not known and redis.call('EXISTS', turn.turn_key) == 1 then
    known = turn.id
  end
  seen[turn.idem_key], seen[turn.turn_key] = known or turn.id, known or turn.id
  if not known then
    fresh[#fresh + 1] = turn
  end
  reply[#reply + 1] = known or turn.id
  reply[#reply + 1] = known and 0 or 1
end

if #fresh > 0 and depth + #fresh > limit then
  return {'full', depth, limit}
end

local now = whole(now_ms())
for _, turn in ipairs(fresh) do
  redis.call('HSET', turn.turn_key, 'envelope', turn.envelope, 'state', 'queued', 'agent', turn.agent, 'priority',
    turn.priority, 'enqueued_ms', now, 'deadline_ms', turn.deadline_ms, 'new_session', turn.new_session)
  if turn.idem ~= '-' then
    redis.call('SET', turn.idem_key, turn.id)
  end
  redis.call('RPUSH', turn.backlog_key, turn.id .. ' ' .. turn.priority .. ' ' .. now .. ' ' .. turn.idem)
  redis.call('ZADD', OPEN, 'NX', now, turn.agent)
  local state = redis.call('HGET', turn.agent_key, 'state')
  if not state or state == 'idle' then
    add_token(turn.agent_key, turn.agent, READY[turn.priority], turn.priority)
  end
end
if #fresh > 0 then
  redis.call('INCRBY', DEPTH, #fresh)
end
return reply
