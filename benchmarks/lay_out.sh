# shellcheck shell=bash
# lay_out SITE [FOLDER]: put the package, and the wheels of a folder, where Python finds them with SITE on its path. A GPU
# machine without a network has no environment to install into. To be sourced in the root of the repository.
lay_out() {
  mkdir "$1/maxent_grpo"
  ln -s "$PWD"/maxent_grpo/* "$1/maxent_grpo/"
  ln -s "$PWD/adapters" "$1/maxent_grpo/adapters"
  ln -s "$PWD/examples/pipeline" "$1/maxent_grpo/pipeline"
  local wheel
  for wheel in ${2:+"$2"/*.whl}; do # one by one: pip installs none of a list with one that does not fit
    [ ! -e "$wheel" ] ||
      python3 -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$1" "$wheel" ||
      echo "$wheel could not be installed."
  done
}
