"""Who signs and who may connect: keys, certificates, envelopes, invitations."""
