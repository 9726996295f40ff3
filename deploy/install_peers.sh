#!/bin/sh
# The programs that the server's tests talk to, from Debian or Ubuntu. Run it as often as you like.
set -eu

PACKAGES="dcmtk dicom3tools orthanc chromium chromium-driver postgresql iproute2"

if [ "$(id -u)" -ne 0 ]; then
    echo "error: expected root, found user $(id -u); run: sudo sh deploy/install_peers.sh" >&2
    exit 1
fi

missing=""
for package in $PACKAGES; do
    if ! dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed; then
        missing="$missing $package"
    fi
done
if [ -z "$missing" ]; then
    echo "all there: $PACKAGES"
    exit 0
fi

apt-get update
# shellcheck disable=SC2086 # a list of words
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $missing

# Debian starts Orthanc at once, on every interface: the tests start their own, where only they can reach it.
if [ -d /run/systemd/system ]; then
    systemctl disable --now orthanc.service
fi
