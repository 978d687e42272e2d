-- What an operator does to an agent.
--
-- KEYS the shared ones, then agent, backlog, parked, transcript
-- ARGV 1 agent id
--      2 'pause': no more of its turns are leased; one that runs goes on
--        'resume': turns of a paused or halted agent are leased again
--        'halt' or 'skip': what happens to its later turns when one becomes a dead letter
--        'reset': forget its history; refused while a turn runs, which would write to it
-- Reply {'ok', state}, {'unknown'} or {'busy'}

local AGENT, BACKLOG, PARKED, TRANSCRIPT = KEYS[SHARED + 1], KEYS[SHARED + 2], KEYS[SHARED + 3], KEYS[SHARED + 4]
local ID, ACTION = ARGV[1], ARGV[2]

expect_shared()
expect(PARKED, 'zset')
expect(TRANSCRIPT, 'list')
local agent = fields(AGENT, 'state', 'token', 'priority', 'hold')
local head = ask('LINDEX', BACKLOG, 0)
head = head and backlog_entry(head)
if not agent.state then
  return {'unknown'}
end

if ACTION == 'pause' and agent.state == 'leased' then
  redis.call('HSET', AGENT, 'hold', 'paused')
elseif ACTION == 'pause' and agent.state ~= 'halted' then
  if agent.token and READY[agent.priority] then
    drop_token(READY[agent.priority], agent.token)
  end
  stop_waiting(ID, PARKED)
  redis.call('HSET', AGENT, 'state', 'paused', 'token', '', 'owner', '')
elseif ACTION == 'resume' and (agent.state == 'paused' or agent.state == 'halted') then
  let_run(AGENT, ID, {}, head)
elseif ACTION == 'resume' then
  redis.call('HSET', AGENT, 'hold', '')
elseif ACTION == 'halt' or ACTION == 'skip' then
  redis.call('HSET', AGENT, 'on_dead', ACTION)
elseif ACTION == 'reset' then
  if agent.state == 'leased' then
    return {'busy'}
  end
  redis.call('DEL', TRANSCRIPT)
elseif ACTION ~= 'pause' then
  return redis.error_reply('ERR unknown action ' .. ACTION)
end
drop_gathered()
-- A turn that stood alone leaves no agent.
return {'ok', redis.call('HGET', AGENT, 'state') or 'idle'}
