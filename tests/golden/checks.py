"""Every form of reference case, and the check for it."""

from tests.golden import (
    broadcast_traces,
    causal_vae,
    latte,
    noise_loop,
    open_sora_loop,
    open_sora_pipeline,
    open_sora_plan,
    open_sora_vae,
    rectified_flow,
    sequence_parallel,
    stdit3,
)
from tests.golden.cases import Case
from tests.golden.forms import Form, form_of


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


STDIT3_CONFIG = names(
    "depth hidden_size num_heads caption_channels model_max_length in_channels input_sq_size qk_norm pred_sigma mlp_ratio "
    "patch_size input_size class_dropout_prob drop_path"
)
LATTE_CONFIG = names(
    "num_attention_heads attention_head_dim in_channels out_channels num_layers dropout cross_attention_dim attention_bias "
    "sample_size patch_size activation_fn num_embeds_ada_norm norm_type norm_elementwise_affine norm_eps attention_type "
    "caption_channels video_length norm_num_groups use_linear_projection only_cross_attention double_self_attention "
    "upcast_attention"
)
PLAN_CONFIG = names("patch_size_t num_vector_embeds attention_mode use_rope")
OSP110_CONFIG = (
    LATTE_CONFIG | PLAN_CONFIG | names("model_max_length rope_scaling_type compress_kv_factor interpolation_scale_1d")
)
OSP120_CONFIG = (
    (LATTE_CONFIG - names("video_length"))
    | PLAN_CONFIG
    | names(
        "sample_size_t interpolation_scale_h interpolation_scale_w interpolation_scale_t downsampler use_stable_fp32"
    )
)
OSP110_INERT = {"num_vector_embeds": None, "rope_scaling_type": "linear"}
OSP120_INERT = {"num_vector_embeds": None, "downsampler": None}
CAUSAL_CONFIG = frozenset(causal_vae.CONFIG_NAMES) | names("attn_resolutions double_z dropout resolution")

LAYOUT = names("state_dict config n_tensors n_elements")
FORWARD = names("weights config out")
LATTE_TENSORS = ("in.encoder_attention_mask", "in.attention_mask")
STDIT3_TENSORS = ("in.mask", "in.x_mask", "in.fps", "in.height", "in.width")
LOOP = names("weights config args pab_config decisions in.z0 out timesteps")
LOOP_FIELDS = names("second_generation_on_same_model_identical")
LOOP_TENSORS = (
    "in.prompt_mask", "in.negative_prompt_mask", "in.noise", "init_noise_sigma", "(latents|model_input)_before_(step|call)",
    "model_output_(first|mid)_(step|call)",
)  # fmt: skip
LATTE_110, LATTE_1 = r"open_sora_plan_v110\w*\.py::LatteT2V", r"latte_transformer_3d\.py::LatteT2V"
PLAN_FLOW = names(
    "steps cfg C T H W h w n hw nf mask transform discrete use_timestep_transform use_discrete_timesteps dtype"
)

FORMS: tuple[Form, ...] = (
    Form(
        group="stdit3", check=stdit3.check_layout, source="STDiT3", has=LAYOUT, config=STDIT3_CONFIG,
    ),
    Form(
        group="stdit3", check=stdit3.check_forward, source="STDiT3", has=FORWARD | names("in.x in.timestep in.y"),
        lacks=names("results"), tensors=STDIT3_TENSORS, config=STDIT3_CONFIG,
    ),
    Form(
        group="dsp", check=sequence_parallel.check, source="STDiT3",
        has=FORWARD | names("in.x in.timestep in.y results"),
        tensors=(*STDIT3_TENSORS, r"out\.sp\d+"), config=STDIT3_CONFIG,
    ),
    Form(
        group="e2e_stdit3", check=open_sora_loop.check, source="STDiT3", has=LOOP | names("in.y in.text_mask"),
        fields=LOOP_FIELDS | names("compute_dtype"), args=names("ntext Wd fps") | PLAN_FLOW, unread_args=names("seed w_"),
        tensors=("in.mask", "in.noise", "in.height", "in.width", "in.num_frames", *LOOP_TENSORS), config=STDIT3_CONFIG,
    ),
    Form(
        group="rflow", check=rectified_flow.check_tables, source="RFLOW", has=names("rows"),
    ),
    Form(
        group="rflow", check=rectified_flow.check_training_loss, source="RFLOW|opensora/schedulers/rf",
        has=names("args in.x_start in.t in.noise in.model_output x_t x_given_to_model loss"), lacks=names("weights"),
        args=names("C T H W mask"), unread_args=names("seed"), tensors=("in.mask",),
    ),
    Form(
        group="rflow", check=rectified_flow.check_loop, source="RFLOW|opensora/schedulers/rf",
        has=names("args in.z0 in.model_outputs out timesteps_given_to_model z_given_to_model"), lacks=names("weights"),
        fields=names("use_timestep_transform use_discrete_timesteps"), args=PLAN_FLOW, unread_args=names("seed"),
        tensors=("in.mask", "in.noise", "in.height", "in.width", "in.num_frames", "x_mask_given_to_model"),
    ),
    Form(
        group="latte", check=latte.check_layout, source="LatteT2V of VideoSys|Latte-1", has=LAYOUT, config=LATTE_CONFIG,
    ),
    Form(
        group="osp110", check=latte.check_layout, source=r"Open-Sora-Plan v1\.1\.0 LatteT2V", has=LAYOUT,
        config=OSP110_CONFIG, inert=OSP110_INERT,
    ),
    Form(
        group="osp120", check=open_sora_plan.check_layout, source="OpenSoraT2V", has=LAYOUT, config=OSP120_CONFIG,
        inert=OSP120_INERT,
    ),
    Form(
        group="latte", check=latte.check_forward, source=LATTE_1,
        has=FORWARD | names("in.hidden_states in.timestep in.encoder_hidden_states"),
        fields=names("enable_temporal_attentions"), tensors=LATTE_TENSORS, config=LATTE_CONFIG,
    ),
    Form(
        group="osp110", check=latte.check_forward, source=LATTE_110,
        has=FORWARD | names("in.hidden_states in.timestep in.encoder_hidden_states"),
        fields=names("enable_temporal_attentions"), tensors=LATTE_TENSORS, config=OSP110_CONFIG, inert=OSP110_INERT,
    ),
    Form(
        group="osp120", check=open_sora_plan.check_forward, source="::OpenSoraT2V",
        has=FORWARD | names("in.hidden_states in.timestep in.encoder_hidden_states"),
        tensors=LATTE_TENSORS, config=OSP120_CONFIG, inert=OSP120_INERT,
    ),
    Form(
        group="e2e_latte", check=noise_loop.check_latte, source="LattePipeline",
        has=LOOP | names("in.prompt_embeds in.negative_prompt_embeds"), fields=LOOP_FIELDS,
        args=names("steps cfg L F H Wd nt second"), unread_args=names("seed w"), tensors=LOOP_TENSORS, config=LATTE_CONFIG,
    ),
    Form(
        group="e2e_osp110", check=noise_loop.check_osp110, source=r"OpenSoraPlanPipeline.*LatteT2V.*PNDM",
        has=LOOP | names("in.prompt_embeds in.negative_prompt_embeds"), fields=LOOP_FIELDS,
        args=names("steps cfg L F H Wd nt second"), unread_args=names("seed w"), tensors=LOOP_TENSORS,
        config=OSP110_CONFIG, inert=OSP110_INERT,
    ),
    Form(
        group="e2e_osp120", check=noise_loop.check_osp120, source="OpenSoraPlanPipeline.*OpenSoraT2V.*EulerAncestral",
        has=LOOP | names("in.prompt_embeds in.negative_prompt_embeds in.noise"), fields=LOOP_FIELDS,
        args=names("steps cfg L F H Wd nt second"), unread_args=names("seed w"), tensors=LOOP_TENSORS,
        config=OSP120_CONFIG, inert=OSP120_INERT,
    ),
    Form(
        group="vae_os12", check=open_sora_vae.check_layout, source=r"Open-Sora 1\.2 VAE", has=LAYOUT,
    ),
    Form(
        group="vae_os12", check=open_sora_vae.check_frame_counts, source="VideoAutoencoderPipeline",
        has=names("rows"), fields=names("micro_frame_size"),
    ),
    Form(
        group="vae_os12", check=open_sora_vae.check_decode, source="VideoAutoencoderPipeline",
        has=names("weights micro_frame_size num_frames in.z out"), tensors=(r"mid\.x_z",),
    ),
    Form(
        group="vae_os12", check=open_sora_vae.check_encode, source="VideoAutoencoderPipeline",
        has=names("weights micro_frame_size num_frames in.x in.noise_spatial out"),
        tensors=(r"in\.noise_temporal(\.\d+)?",),
    ),
    Form(
        group="vae_osp110", check=causal_vae.check_layout, source="CausalVAE", has=LAYOUT, config=CAUSAL_CONFIG,
        inert={"double_z": True},
    ),
    Form(
        group="vae_osp110", check=causal_vae.check_decode, source="CausalVAE", has=FORWARD | names("tiling in.z"),
        config=CAUSAL_CONFIG, inert={"double_z": True},
    ),
    Form(
        group="vae_osp110", check=causal_vae.check_encode, source="CausalVAE",
        has=FORWARD | names("tiling in.x out.mean out.logvar"), config=CAUSAL_CONFIG, inert={"double_z": True},
    ),
    Form(
        group="open_sora_pipeline", check=open_sora_pipeline.check_text, source="pipelines/open_sora",
        has=names("cleaned with_scores split"),
    ),
    Form(
        group="open_sora_pipeline", check=open_sora_pipeline.check_sizes, source="pipelines/open_sora",
        has=names("num_frames image_size_h_w fps"),
    ),
    Form(
        group="open_sora_pipeline", check=open_sora_pipeline.check_masks, source="pipelines/open_sora",
        has=names("cases"),
    ),
    Form(group="pab", check=broadcast_traces.check, source=broadcast_traces.FAMILIES_PATTERN, has=names("model cases")),
)  # fmt: skip


def group_of(case: Case) -> str | None:
    """Returns the name under which a case's differences are reported; None for a case of no known form."""
    try:
        return form_of(case, FORMS).group
    except AssertionError:
        return None
