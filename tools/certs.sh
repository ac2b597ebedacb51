#!/usr/bin/env bash
# Certificates for a first try of tls://: an authority, a server and a client.
#
#   tools/certs.sh DIR
#
# makes DIR/ca.crt, DIR/server.crt (for localhost, 127.0.0.1 and ::1) and DIR/client.crt (for "client"), each with its
# .key beside it, which its owner alone can read. They are valid for a year. Whoever has ca.key can let anybody in:
# for more than a try, keep it elsewhere.
set -euo pipefail

days=365

[ $# = 1 ] && [ "${1#-}" = "$1" ] && [ -n "$1" ] || { echo 'usage: tools/certs.sh DIR' >&2; exit 2; }
dir=$1
command -v openssl >/dev/null 2>&1 ||
  { echo 'certs.sh: no openssl; install the package "openssl" of your distribution' >&2; exit 1; }
for name in ca server client; do
  for file in "$dir/$name.crt" "$dir/$name.key"; do
    if [ -e "$file" ] || [ -L "$file" ]; then
      echo "certs.sh: $file exists and was left alone; name another directory" >&2
      exit 1
    fi
  done
done

umask 077
mkdir -p -- "$dir"
work=$(mktemp -d "$dir/.certs.XXXXXX")
trap 'rm -rf -- "$work"' EXIT

cat >"$work/openssl.cnf" <<'END'
[req]
distinguished_name = name
prompt = no
[name]
[ca]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost, IP:127.0.0.1, IP:::1
[client]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
subjectAltName = DNS:client
END

ssl() { # arguments of openssl; what it says is shown only if it fails
  openssl "$@" 2>"$work/said" || { cat "$work/said" >&2; echo "certs.sh: openssl $1 failed" >&2; exit 1; }
}

key() { # name
  ssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$work/$1.key"
}

signed() { # name common-name
  key "$1"
  ssl req -new -config "$work/openssl.cnf" -key "$work/$1.key" -subj "/CN=$2" -out "$work/$1.csr"
  ssl x509 -req -in "$work/$1.csr" -days "$days" -CA "$work/ca.crt" -CAkey "$work/ca.key" \
    -set_serial "0x$(openssl rand -hex 16)" -extfile "$work/openssl.cnf" -extensions "$1" -out "$work/$1.crt"
}

key ca
ssl req -x509 -new -config "$work/openssl.cnf" -extensions ca -key "$work/ca.key" -days "$days" \
  -subj '/CN=nlbus first try' -out "$work/ca.crt"
signed server localhost
signed client client

chmod 644 "$work"/*.crt
chmod 600 "$work"/*.key
for name in ca server client; do
  # ln fails if somebody else has made the file meanwhile
  ln -- "$work/$name.key" "$dir/$name.key"
  ln -- "$work/$name.crt" "$dir/$name.crt"
done
echo "made ca, server and client in $dir, valid for $days days"
