-- Gives an agent that has no history one: a copy of another's, or what was exported.
--
-- KEYS the shared ones, then agent, backlog, transcript
-- ARGV 1 id of this seeding, unlike any other  2 'halt' or 'skip'  3 manifest in its envelope ('': none)
--      then the history: transcript entries in their envelopes, oldest first
-- Reply {'ok'}: done, now or by the same call before
--      {'taken', entries, open turns}: it has a history, or turns that would run on this one; nothing was written

local AGENT, BACKLOG, TRANSCRIPT = KEYS[SHARED + 1], KEYS[SHARED + 2], KEYS[SHARED + 3]
local SEEDING, ON_DEAD, MANIFEST, FIRST = ARGV[1], ARGV[2], ARGV[3], 4
-- Entries to a push: Lua bounds how many arguments a call takes.
local ENTRIES_A_PUSH = 1000

expect_shared()
expect(TRANSCRIPT, 'list')
local agent = fields(AGENT, {'state', 'epoch', 'seeding'})
local entries, open = ask('LLEN', TRANSCRIPT), ask('LLEN', BACKLOG)
if agent.seeding == SEEDING then
  return {'ok'}
end
if entries > 0 or open > 0 then
  return {'taken', entries, open}
end
for i = FIRST, #ARGV, ENTRIES_A_PUSH do
  redis.call('RPUSH', TRANSCRIPT, unpack(ARGV, i, math.min(#ARGV, i + ENTRIES_A_PUSH - 1)))
end
-- Above every lease there was, so that no late manifest of an earlier history comes in.
local manifest_epoch = math.max(NOW, (tonumber(agent.epoch) or 0) + 1)
redis.call('HSET', AGENT, 'state', agent.state or 'idle', 'seeding', SEEDING, 'on_dead', ON_DEAD, 'manifest', MANIFEST,
  'manifest_epoch', whole(manifest_epoch))
return {'ok'}
