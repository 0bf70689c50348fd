#!/usr/bin/env bash
# The acceptance runs of training; each is meant for at most 40 minutes on 2 quiet cores. Run: bash training/runs.sh DATA OUT [RUN...]
# RUNs in order: split mlm simcse-zh siamese-zh siamese-zh-bilstm regression-zh regression-zh-warm sbert-en simcse-en siamese-en regression-en questions bi-encoder-en groups bi-encoder cross-encoder evaluate
set -u
DATA=${1:?}; OUT=${2:?}; shift 2
RUNS=${*:-split mlm simcse-zh siamese-zh siamese-zh-bilstm regression-zh regression-zh-warm sbert-en simcse-en siamese-en regression-en questions bi-encoder-en groups bi-encoder cross-encoder evaluate}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
TM=${TEXTMATCH:-textmatch}
DEMO=$(cd "$(dirname "$0")/../standalone/demo" && pwd)
OWN=$(cd "$(dirname "$0")/data" && pwd)  # groups, graded pairs and pairs of questions, written for this project
mkdir -p "$OUT"; cd "$OUT" || exit 1

split() {
  $TM train split --pairs "$DATA/afqmc-zh/train.tsv" --pairs "$DATA/lcqmc-zh/dev.tsv" --output pairs-zh --seed 1
  $TM train split --pairs "$DATA/snli-en/dev.tsv" --output snli-en --seed 1
  # Checkpoints of simcse are chosen on held-back training pairs; the dev files stay unused.
  $TM train split --pairs "$DATA/stsb-zh/train.tsv" --output stsb-zh --parts choose=0.3,rest=0.7 --seed 1
  $TM train split --pairs "$DATA/stsb-en/train.tsv" --output stsb-en --parts choose=0.2,train=0.8 --seed 1
}
mlm() {
  $TM train mlm --from-scratch --vocab "$DATA/vocab-zh.txt" --layers 3 --hidden 192 --heads 6 \
    --train "$DATA/sentences-zh/stsb-unsup.txt" --train "$DATA/cmrc-zh/corpus.jsonl" --train "$DATA/cmrc-zh/queries.jsonl" \
    --train pairs-zh/train.tsv --dev pairs-zh/dev.tsv --output mlm-zh --max-steps 4000 --evaluate-steps 500 \
    --batch-size 64 --max-length-tokens 64 --learning-rate 5e-4 --bf16 --device cpu
}
simcse-zh() {
  $TM train simcse --base mlm-zh --train "$DATA/sentences-zh/stsb-unsup.txt" --dev stsb-zh/choose.tsv \
    --held-out "$DATA/stsb-zh/dev.tsv" --output simcse-zh --epochs 2 --batch-size 64 --learning-rate 1e-4 \
    --evaluate-steps 40 --patience 4 --max-length-tokens 64 --device cpu
}
siamese-zh() {
  $TM train siamese --base mlm-zh --train pairs-zh/train.tsv --dev pairs-zh/dev.tsv --held-out pairs-zh/test.tsv \
    --output siamese-zh --epochs 8 --batch-size 64 --learning-rate 3e-4 --margin 0.5 \
    --evaluate-steps 250 --patience 4 --max-length-tokens 48 --device cpu
}
siamese-zh-bilstm() {
  $TM train siamese --base mlm-zh --train pairs-zh/train.tsv --dev pairs-zh/dev.tsv --held-out pairs-zh/test.tsv \
    --output siamese-zh-bilstm --lstm bilstm --lstm-width 128 --epochs 8 --batch-size 64 --learning-rate 3e-4 --margin 0.5 \
    --evaluate-steps 250 --patience 4 --max-length-tokens 48 --device cpu
}
regression-zh() {
  $TM train regression --base mlm-zh --train pairs-zh/train.tsv --dev pairs-zh/dev.tsv --held-out pairs-zh/test.tsv \
    --output regression-zh --warm-up-pairs 0 --both-orders --dropout 0.1 --epochs 4 --batch-size 64 --learning-rate 3e-4 \
    --evaluate-steps 250 --patience 4 --max-length-tokens 96 --device cpu
}
regression-zh-warm() {  # the same, but warmed up on pairs that the siamese model labels: needs the run siamese-zh
  $TM train regression --base siamese-zh --train pairs-zh/train.tsv --dev pairs-zh/dev.tsv --held-out pairs-zh/test.tsv \
    --output regression-zh-warm --warm-up-pairs 60000 --warm-up-learning-rate 5e-4 --dropout 0.1 --epochs 4 --batch-size 64 \
    --learning-rate 3e-4 --evaluate-steps 250 --patience 4 --max-length-tokens 96 --device cpu
}
sbert-en() {
  $TM train sbert --train snli-en/train.tsv --dev snli-en/dev.tsv --held-out snli-en/test.tsv --output sbert-en \
    --epochs 4 --batch-size 32 --learning-rate 5e-5 --bf16 --max-length-tokens 64 --device cpu
}
simcse-en() {
  $TM train simcse --train stsb-en/train.tsv --train "$DATA/snli-en/dev.tsv" --dev stsb-en/choose.tsv --held-out "$DATA/stsb-en/dev.tsv" \
    --output simcse-en --batch-size 64 --learning-rate 5e-6 --evaluate-steps 20 --patience 4 --max-length-tokens 64 --bf16 --device cpu
}
siamese-en() {
  $TM train siamese --train stsb-en/train.tsv --dev stsb-en/choose.tsv --held-out "$DATA/stsb-en/dev.tsv" --output siamese-en \
    --margin 1 --epochs 4 --learning-rate 2e-5 --max-length-tokens 64 --bf16 --device cpu
}
regression-en() {  # the English cross-encoder; stsb-en/dev is measured once, at the end
  $TM train regression --train "$DATA/stsb-en/train.tsv" --held-out "$DATA/stsb-en/dev.tsv" --held-out "$DATA/sick-en/dev.tsv" \
    --warm-up-sentences "$DATA/snli-en/dev.tsv" --warm-up-pairs 60000 --warm-up-labels siamese-en --output regression-en --adapter-rank 32 --epochs 3 --device cpu \
    --data-note "STS Benchmark scores CC BY-SA 4.0; SNLI sentences CC BY-SA 4.0, without labels."
}
questions() {  # what the questions of ours are about: from the texts of 120 installed libraries
  python3 -m venv libraries && libraries/bin/pip install -q -r "$DEMO/library_packages.txt"
  "$(dirname "$(command -v "$TM")")/python" -m standalone.demo.training_pairs questions --python libraries/bin/python
}
bi-encoder-en() {  # the English bi-encoder
  $TM train mine --pairs questions/pairs.tsv --no-header --corpus questions/texts.txt --output triples.tsv --depth 300 --margin 0.02 --device cpu
  $TM train simcse --hard-negatives --train triples.tsv --held-out "$DATA/stsb-en/dev.tsv" --output bi-encoder-en --adapter-rank 32 \
    --epochs 2 --batch-size 32 --learning-rate 3e-4 --max-length-tokens 256 --bf16 --device cpu
}
groups() {  # paraphrases and near misses in both languages, as pairs and as triples
  $TM train groups $(printf -- '--groups %s ' "$OWN"/groups_*.tsv) --near-miss-label 0.1 \
    --pairs groups/pairs.tsv --triples groups/triples.tsv
}
bi-encoder() {  # the default bi-encoder: needs the runs split, questions and groups
  $TM train mine --pairs questions/pairs.tsv --no-header --corpus questions/texts.txt --model bi-encoder-en --output lists.tsv \
    --negatives 12 --depth 300 --margin 0.03 --device cpu
  $TM train simcse --hard-negatives --base multilingual-e5-small --no-prompts --train lists.tsv --train groups/triples.tsv \
    --paraphrases questions/translations.tsv --graded-pairs "$DATA/stsb-en/train.tsv" --graded-pairs "$OWN/graded_pairs_zh.tsv" --graded-weight 0.3 \
    --mix 3,2,1,1,1 --temperature 0.0333 --dropout 0 --adapter-rank 32 --max-steps 600 --batch-size 64 --learning-rate 4e-4 \
    --max-length-tokens 256 --bf16 --held-out "$DATA/stsb-en/dev.tsv" --held-out "$DATA/stsb-zh/dev.tsv" --output bi-encoder --device cpu
}
cross-encoder() {  # the default pair scorer: needs the run bi-encoder
  awk -F'\t' -v OFS='\t' '{ $3 /= 5; print }' "$OWN/graded_pairs_zh.tsv" > graded-pairs-zh.tsv
  $TM train distill --base multilingual-e5-small --start-adapter bi-encoder --adapter-rank 32 --both-orders \
    --train groups/pairs.tsv --train "$OWN/question_pairs_zh.tsv" --train "$DATA/stsb-en/train.tsv" --train graded-pairs-zh.tsv \
    --candidates lists.tsv --teacher bi-encoder --labelled-lists groups/triples.tsv \
    --loss kl --list-size 4 --mix 2,3,2,1,1,1 --max-steps 2000 --batch-size 64 --learning-rate 4e-4 --bf16 \
    --held-out "$DATA/stsb-en/dev.tsv" --held-out "$DATA/stsb-zh/dev.tsv" --output cross-encoder --device cpu
}
evaluate() {
  $TM evaluate pairs char-tfidf siamese-zh siamese-zh-bilstm regression-zh regression-zh-warm pairs-zh/test.tsv --dev pairs-zh/dev.tsv
  $TM evaluate pairs char-tfidf mlm-zh simcse-zh "$DATA/stsb-zh/dev.tsv"
  $TM evaluate pairs all-MiniLM-L6-v2 regression-en bi-encoder-en simcse-en siamese-en "$DATA/stsb-en/dev.tsv"
}
for run in $RUNS; do
  echo "== $run $(date +%T)"; { time timeout 2400 bash -c "$(declare -f); DATA='$DATA'; DEMO='$DEMO'; OWN='$OWN'; TM='$TM'; $run"; } 2>&1 | tee "$run.log"
done
