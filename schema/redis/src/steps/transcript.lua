-- The turn that an entry of a transcript is of. An entry of ours begins with it; any other writer's is read whole, which takes a hundred
-- times as long.
local function turn_of_entry(entry)
  if string.sub(entry, 3, 8) == '\164turn\217' then
    return string.sub(entry, 10, 9 + string.byte(entry, 9))
  end
  return cmsgpack.unpack(string.sub(entry, 2)).turn
end
