"""PyTorch's operators that take a fixed number of steps for each value that they read or write.

These are the names of those that PyTorch marks neither as views nor as elementwise. An operator in
place has the same name with "_" behind it. `elasticnet.card.operators` names in the card what is
neither counted nor light, so a name that is missing here is a warning too many, never a wrong
count.
"""

from __future__ import annotations

CREATING = """
    arange bartlett_window blackman_window empty empty_like empty_permuted empty_strided eye
    fft_fftfreq fft_rfftfreq full full_like hamming_window hann_window kaiser_window linspace
    logspace new_empty new_empty_strided new_full new_ones new_zeros ones ones_like range
    scalar_tensor tril_indices triu_indices zero zeros zeros_like
"""
DRAWING = """
    bernoulli binomial cauchy exponential geometric log_normal multinomial native_dropout normal
    poisson rand rand_like randint randint_like randn randn_like random randperm
    rrelu_with_noise uniform
"""
COPYING = """
    as_strided block_diag cat channel_shuffle clone _coalesce coalesce _coalesced col2im complex
    constant_pad_nd copy _copy_from detach diag_embed diagonal_scatter expand_copy fill flip
    im2col lift lift_fresh lu_unpack _pack_padded_sequence _pin_memory pin_memory pixel_shuffle
    pixel_unshuffle polar reflection_pad1d reflection_pad2d reflection_pad3d repeat
    repeat_interleave replication_pad1d replication_pad2d replication_pad3d _reshape_copy resize
    resize_as roll rot90 select_scatter set slice_scatter sparse_compressed_tensor
    _sparse_compressed_tensor_unsafe sparse_coo_tensor _sparse_coo_tensor_unsafe
    _sparse_coo_tensor_with_dims _sparse_coo_tensor_with_dims_and_tensors sparse_mask
    split_with_sizes squeeze _stack stack t _to_copy _to_dense to_padded_tensor _to_sparse
    _to_sparse_csr transpose tril triu unsafe_split unsafe_split_with_sizes _unsafe_view
    unsqueeze
"""
INDEXING = """
    embedding gather index index_add index_copy index_fill index_put _index_put_impl
    index_reduce index_select masked_fill masked_scatter masked_select nonzero nonzero_static
    put scatter scatter_add scatter_reduce segment_reduce take _unsafe_index _unsafe_index_put
    _unsafe_masked_index _unsafe_masked_index_put_accumulate
"""
REDUCING_AND_SORTING = """
    all allclose amax amin aminmax _aminmax any argmax argmin bincount bucketize count_nonzero
    cummax _cummax_helper cummin _cummin_helper cumprod cumsum dist equal histc _is_all_true
    _is_any_true isin kthvalue linalg_vector_norm _logcumsumexp logcumsumexp logsumexp max mean
    median min mode nanmedian nansum norm prod searchsorted sort _sparse_sum std std_mean sum
    topk trace _unique _unique2 unique_consecutive unique_dim unique_dim_consecutive var
    var_mean
"""
NORMALISING = """
    batch_norm _batch_norm_no_update _batch_norm_with_update _batch_norm_with_update_functional
    cudnn_batch_norm _fused_rms_norm _log_softmax _masked_softmax miopen_batch_norm
    native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional
    _native_batch_norm_legit_no_training native_group_norm native_layer_norm native_norm renorm
    _safe_softmax _softmax _sparse_log_softmax _sparse_softmax _weight_norm_interface
"""
ACTIVATING = """
    _add_relu addr floor_divide gelu glu hardswish linalg_cross log_sigmoid_forward
    _masked_scale mish _prelu_kernel rsub _thnn_fused_gru_cell _thnn_fused_lstm_cell
"""
POOLING = """
    _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d avg_pool2d
    avg_pool3d fractional_max_pool2d fractional_max_pool3d max_pool2d_with_indices
    max_pool3d_with_indices max_unpool2d max_unpool3d
"""
RESIZING = """
    affine_grid_generator upsample_bicubic2d _upsample_bicubic2d_aa upsample_bilinear2d
    _upsample_bilinear2d_aa _upsample_lanczos2d_aa upsample_linear1d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d upsample_trilinear3d
"""
LOSSES = """
    binary_cross_entropy binary_cross_entropy_with_logits huber_loss mse_loss nll_loss2d_forward
    nll_loss_forward smooth_l1_loss soft_margin_loss
"""
QUANTISING = """
    dequantize fake_quantize_per_channel_affine_cachemask
    fake_quantize_per_tensor_affine_cachemask
    _fake_quantize_per_tensor_affine_cachemask_tensor_qparams int_repr quantize_per_channel
    quantize_per_tensor quantize_per_tensor_dynamic
"""
ASKING = """
    _assert_async _assert_scalar dense_dim _functional_assert_async _functional_assert_scalar
    _has_same_storage_numel is_coalesced is_pinned is_same_size is_set_to _linalg_check_errors
    _local_scalar_dense _nnz q_scale q_zero_point sparse_dim sym_constrain_range
    sym_constrain_range_for_size sym_numel sym_size sym_storage_offset sym_stride
"""

LIGHT_NAMES = frozenset(
    name
    for group in (
        CREATING,
        DRAWING,
        COPYING,
        INDEXING,
        REDUCING_AND_SORTING,
        NORMALISING,
        ACTIVATING,
        POOLING,
        RESIZING,
        LOSSES,
        QUANTISING,
        ASKING,
    )
    for name in group.split()
)
