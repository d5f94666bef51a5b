"""Do samples become new where there are more training objects? One model, trained on 64 to 512 variants of chairs."""
