"""What is done to a pretrained model: continued pretraining in few parameters."""
