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
# The plugin runs `passfs serve` alone: docker, rich and typer are for the commands on the host.
RUN if [ -f ca-bundle.crt ]; then export PIP_CERT=/src/ca-bundle.crt; fi \
    && python3 -m venv /opt/passfs \
    && python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        | grep -Ev '^(docker|rich|typer)\b' > requirements.txt \
    && /opt/passfs/bin/pip install --no-cache-dir --disable-pip-version-check --progress-bar off -r requirements.txt
COPY LICENSE README.md setup.py ./
COPY packaging/passfs.1 packaging/passfs.1
COPY passthrough passthrough
COPY plugin plugin
RUN if [ -f ca-bundle.crt ]; then export PIP_CERT=/src/ca-bundle.crt; fi \
    && /opt/passfs/bin/pip install --no-cache-dir --disable-pip-version-check --progress-bar off --no-deps . \
    && /opt/passfs/bin/pip uninstall --disable-pip-version-check -y pip \
    && find /opt/passfs -name '*.so' -exec strip --strip-unneeded {} +

FROM debian:trixie-slim AS root
RUN apt-get update \
    && apt-get install -y --no-install-recommends libfuse3-4 python3 \
    && rm -rf \
        # Caches, logs and documents.
        /var/cache/* /var/lib/apt /var/log/* /usr/share/doc /usr/share/info /usr/share/locale /usr/share/man \
        # Nothing is installed later: apt with its libraries, dpkg with the scripts of the packages, and perl, which runs these.
        # /var/lib/dpkg/status stays, because scanners for vulnerabilities find the packages there.
        /usr/bin/apt* /usr/bin/dpkg* /usr/bin/perl* /usr/bin/sqv /usr/lib/apt /usr/lib/dpkg /usr/lib/*/libapt-* /usr/lib/*/libstdc++* \
        /usr/lib/*/perl* /usr/share/debconf /usr/share/dpkg /usr/share/keyrings /usr/share/perl* /var/lib/dpkg/info \
        # Character sets of iconv(3). Python has its own, and libfuse converts nothing.
        /usr/lib/*/gconv /usr/bin/localedef \
        # Modules of Python that no program of the plugin imports: help texts, tests, a graphical editor, pip.
        /usr/lib/python3*/ensurepip /usr/lib/python3*/idlelib /usr/lib/python3*/pydoc_data /usr/lib/python3*/test \
    # The directories of config.json and of the engine: sockets, volumes, the host's files and the data.
    && mkdir -p /run/docker/plugins /mnt/volumes /host /var/lib/passfs

# One layer, without the files that the stage above has removed.
FROM scratch
COPY --from=root / /
COPY --from=build /opt/passfs /opt/passfs
ENTRYPOINT ["/opt/passfs/bin/passfs", "serve", "--managed"]
