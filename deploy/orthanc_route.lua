-- Sends every CT slice on to fastich as it arrives; what fastich sent back goes nowhere.
function OnStoredInstance(instanceId, tags, metadata, origin)
   if tags['Modality'] == 'CT' and origin['RemoteAet'] ~= 'FASTICH' then
      SendToModality(instanceId, 'fastich')
   end
end
