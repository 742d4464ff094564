"""What `--help` says of a command besides its flags: exit codes, examples, columns."""

from __future__ import annotations

EXITS = """exit codes:
  0 all clips rendered   1 error   2 wrong usage   3 some clips failed
  4 manifest invalid   5 cluster or bucket refused   6 budget spent   130 interrupted
  of verify: 7 the video is not what was signed or recorded   8 it carries no manifest"""

SETTINGS = """settings:
  Every setting above may also be an environment variable (PAB_PIPELINE_GPUS_PER_NODE=4) or a key of a --config file
  (gpus_per_node = 4; slurm = { constraint = "a100" }). A flag wins over a variable, a variable wins over the file.

"""

SUBMIT = """examples:
  python -m pipeline submit manifests/demo.parquet
  python -m pipeline submit prompts.parquet --output s3://videos/run1 --cluster slurm --gpus-per-node 4 \\
         --partition gpu --job-minutes 120 --max-parallel-jobs 8
  python -m pipeline submit prompts.parquet --gpus-per-node 4 --dry-run

"""


COLUMNS = """columns of a manifest:
  required: prompt
  optional: clip_id, negative_prompt, seed, model, num_frames, height, width, fps, num_steps, guidance_scale, broadcast,
            sampling, flow_shift, guidance_scale_2
  lora                    LoRAs of the row as --lora names them, several with ; between them, none for none at all; if
                          empty, those of --lora
  references              paths or URLs of images and videos, separated by ;. Allowed are files below the manifest's
                          folder or a --reference-root, http(s) at public addresses, s3, gs, az, abfs and abfss
  mask_strategy           which frames the references give; if empty, the first reference begins the clip
  loops                   how many times num_frames are rendered, each time continuing from the last frames; if empty,
                          up to the prompt's last text, so 3 for |0| a calm shore |2| a storm
  condition_frame_length  number of latent frames from which a loop continues
  condition_frame_edit    how much noise these frames start from: 0 keeps them, 1 draws them again
  Any other column is kept.

"""


BUILD = """examples:
  python -m pipeline manifest build prompts.csv prompts.parquet
  python -m pipeline manifest build captions.json.gz prompts.parquet --records data.items --prompt-column caption
  python -m pipeline manifest build 'set/*.jsonl' small.parquet --sample 100 --seeds 4 --sweep guidance_scale=4,5,6
  cat prompts.txt | python -m pipeline manifest build - prompts.parquet --num-frames 81 --set height=480 --set width=832

"""

SOURCE_HELP = (
    "Parquet, CSV, JSON, JSON lines or text: files, folders, patterns, URLs, or - for standard input; a row is a clip"
)

BENCH = """examples:
  python -m pipeline bench                 all rows; on a CPU tiny models of the same classes, in a minute or two
  python -m pipeline bench --rows latte --seconds 500
  python -m pipeline bench --rows "open_sora: compiled pab357 int8, open_sora ours: compiled none"
  python -m pipeline bench --rows "peers: demo_wan MagCache"      a cache of others beside our plans, on trained weights
  python -m pipeline bench --join runs/a runs/b --output runs/both
  python -m pipeline bench --rows wan --output runs/new --against runs/old      what became slower or faster since then
  python -m pipeline bench --figures wan_14b --output runs/figures
  python -m pipeline submit prompts.parquet --model wan_14b --figures runs/figures/figures.json --dry-run

"""

VERIFY = """examples:
  python -m pipeline verify runs/demo/videos/red-circle-left.mp4
  python -m pipeline verify s3://videos/run1 --clip red-circle-left --json
  python -m pipeline verify clip.mp4 --trust my-authority.pem

  Needs the extra: pip install 'pab-pipeline[c2pa]'. If the video lies in a run, its record is compared too.

"""

CALIBRATE = """examples:
  python -m pipeline calibrate prompts.txt --output plans/mine.json --match pab246
  python -m pipeline calibrate prompts.parquet --model open_sora --weights DIR --output plans/30db.json --min-psnr 30
  python -m pipeline submit prompts.parquet --broadcast plans/mine.json

"""
