"""What is learnt: one folder a task, each with data, network, module and report. No task knows who logs."""
