#!/usr/bin/env bash
# Builds images with docker or, where no Docker engine runs, with buildah.
#
#   deploy/docker/build.sh [TARGET…]      the default: all
#
# From the environment: REGISTRY (textmatch), VERSION (of pyproject.toml), and BUILD_ARGS, which are passed on, such as
# "--build-arg PYTHON_IMAGE=… --secret id=pip,src=… --isolation chroot".
set -euo pipefail
cd "$(dirname "$0")/../.."

registry=${REGISTRY:-textmatch}
version=${VERSION:-$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)}
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(encoder-cuda encoder-cpu matcher worker gateway)
read -ra build_args <<<"${BUILD_ARGS:-}"

if docker info >/dev/null 2>&1; then
  build=(docker build)
elif command -v buildah >/dev/null; then
  build=(buildah build --layers)
else
  echo "neither a Docker engine nor buildah is installed; on Debian: apt-get install buildah" >&2
  exit 1
fi

for target in "${targets[@]}"; do
  image="$registry/$target:$version"
  echo "==> $image"
  "${build[@]}" --file deploy/docker/Dockerfile --target "$target" --tag "$image" "${build_args[@]}" .
done
