"""What is asked of any module and its tensors: compare, copy, unwrap, find shared memory."""
