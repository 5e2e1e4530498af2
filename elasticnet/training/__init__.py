"""What training recipes share: one step, the log, the run folder, exact states, several processes.

There is no loop here: each recipe owns its loop, in plain sight.
"""
