# The root file system of the managed plugin. `passfs install` builds this image, exports its files and creates a plugin from the
# files and config.json. A managed plugin takes neither entrypoint nor environment from an image: config.json repeats both.

FROM debian:trixie-slim AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libfuse3-dev pkg-config python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# `passfs install --ca-bundle` adds ca-bundle.crt; because of the pattern, the file may be missing.
COPY pyproject.toml ca-bundle.cr[t] ./
# The dependencies have a layer of their own, so that a change of the sources does not build pyfuse3 again.
RUN if [ -f ca-bundle.crt ]; then export PIP_CERT=/src/ca-bundle.crt; fi \
    && python3 -m venv /opt/passfs \
    && python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > requirements.txt \
    && /opt/passfs/bin/pip install --no-cache-dir --disable-pip-version-check --progress-bar off -r requirements.txt
COPY LICENSE README.md setup.py ./
COPY passthrough passthrough
COPY plugin plugin
RUN if [ -f ca-bundle.crt ]; then export PIP_CERT=/src/ca-bundle.crt; fi \
    && /opt/passfs/bin/pip install --no-cache-dir --disable-pip-version-check --progress-bar off --no-deps . \
    && /opt/passfs/bin/pip uninstall --disable-pip-version-check -y pip \
    && find /opt/passfs -name '*.so' -exec strip --strip-unneeded {} +

FROM debian:trixie-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends libfuse3-4 python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf/*-old /var/log/* /usr/share/doc /usr/share/man /usr/share/locale \
    # The directories of config.json and of the engine: sockets, volumes, the host's files and the data.
    && mkdir -p /run/docker/plugins /mnt/volumes /host /var/lib/passfs
COPY --from=build /opt/passfs /opt/passfs
ENTRYPOINT ["/opt/passfs/bin/passfs", "serve", "--managed"]
