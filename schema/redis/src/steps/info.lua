-- What Redis says of a group or of a consumer, by name.
local function named(answer)
  local found = {}
  for i = 1, #answer, 2 do
    found[answer[i]] = answer[i + 1]
  end
  return found
end

-- The groups that XINFO GROUPS answers, by name; none if it answers with an error, as of a stream that is not there.
local function groups_in(answers)
  local groups = {}
  for _, answer in ipairs(answers.err and {} or answers) do
    local group = named(answer)
    groups[group.name] = group
  end
  return groups
end
