-- What an operator does to an agent.
--
-- KEYS the shared ones, then agent, backlog, parked, transcript, result of its head (the agent key again where the caller
--      knows of none)
-- ARGV 1 agent id
--      2 'pause': no more of its turns are leased; one that runs goes on
--        'resume': turns of a paused or halted agent are leased again
--        'halt' or 'skip': what happens to its later turns when one becomes a dead letter
--        'reset': forget its history
--        'rollback': forget the end of its history
--      3 the head the caller knows of ('': none); looked at where history is forgotten
--      4 of a rollback: how many entries stay  5 the last turn that stays  6 how many entries there are  7 the last turn
-- Reply {'ok', state}, {'unknown'}
--      {'busy'}: its head runs, and would write to the history, or it has published tokens, and would go on after others
--      {'head', text}: the head is this one ('': none); call again with its keys
--      {'changed'}: the history is not the one that the caller knows of; nothing was written

local AGENT, BACKLOG, PARKED, TRANSCRIPT = KEYS[SHARED + 1], KEYS[SHARED + 2], KEYS[SHARED + 3], KEYS[SHARED + 4]
local RESULT = KEYS[SHARED + 5]
local ID, ACTION, KNOWN_HEAD = ARGV[1], ARGV[2], ARGV[3]

expect_shared()
expect(PARKED, 'zset')
expect(TRANSCRIPT, 'list')
local agent = fields(AGENT, {'state', 'ticket', 'priority', 'hold', 'epoch'})
local head = backlog_entry(ask('LINDEX', BACKLOG, 0))
if not agent.state then
  return {'unknown'}
end

-- Why the history must stay as it is; nil where it may change.
local function why_not()
  if agent.state == 'leased' then
    return {'busy'}
  end
  local text = head and head.text or ''
  if text ~= KNOWN_HEAD then
    return {'head', text}
  end
  local _, published = 0, 0
  if head then
    _, published = published_in(RESULT, tonumber(agent.epoch) or 0)
  end
  return published > 0 and {'busy'} or nil
end

-- The turn of the history's entry at `index`, from 0; -1 is the last one.
local function turn_at(index)
  local entry = ask('LINDEX', TRANSCRIPT, index)
  return entry and turn_of_entry(entry)
end

-- Drops what the caller saw behind the entries that stay. Done before by the same call: there is nothing to do.
local function roll_back()
  local stay, last_to_stay, length, last = tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6]), ARGV[7]
  local found = ask('LLEN', TRANSCRIPT)
  if turn_at(stay - 1) ~= last_to_stay then
    return {'changed'}
  end
  if found == length and turn_at(-1) == last then
    redis.call('LTRIM', TRANSCRIPT, 0, stay - 1)
  elseif found ~= stay then
    return {'changed'}
  end
end

if ACTION == 'pause' and agent.state == 'leased' then
  redis.call('HSET', AGENT, 'hold', 'paused')
elseif ACTION == 'pause' and agent.state ~= 'halted' then
  if agent.ticket and READY[agent.priority] then
    drop_ticket(READY[agent.priority], agent.ticket)
  end
  stop_waiting(ID, PARKED)
  redis.call('HSET', AGENT, 'state', 'paused', 'ticket', '', 'owner', '')
elseif ACTION == 'resume' and (agent.state == 'paused' or agent.state == 'halted') then
  make_runnable(AGENT, ID, {}, head)
elseif ACTION == 'resume' then
  redis.call('HSET', AGENT, 'hold', '')
elseif ACTION == 'halt' or ACTION == 'skip' then
  redis.call('HSET', AGENT, 'on_dead', ACTION)
elseif ACTION == 'reset' or ACTION == 'rollback' then
  local refused = why_not()
  if not refused and ACTION == 'rollback' then
    -- The manifest stays: its whole segments of what remains are found.
    refused = roll_back()
  end
  if refused then
    return refused
  end
  if ACTION == 'reset' then
    redis.call('DEL', TRANSCRIPT)
    -- Above every lease there was, so that no late manifest of the forgotten history comes in.
    redis.call('HSET', AGENT, 'manifest', '', 'manifest_epoch', whole(math.max(NOW, (tonumber(agent.epoch) or 0) + 1)))
  end
elseif ACTION ~= 'pause' then
  return redis.error_reply('ERR unknown action ' .. ACTION)
end
drop_gathered()
-- A turn that stood alone leaves no agent.
return {'ok', redis.call('HGET', AGENT, 'state') or 'idle'}
