#!/usr/bin/env bash
# Makes the test certificates of this folder anew; needs openssl. They protect nothing: the keys are public.
#
#   ca         the authority of server and client
#   server     localhost, 127.0.0.1
#   client     a client that the server shall accept
#   stranger   a client of another authority, which the server shall refuse
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
days=36500

authority() { # NAME
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days $days -sha256 \
        -keyout "$1.key" -out "$1.pem" -subj "/CN=sandboxd test $1" \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign
}

leaf() { # NAME AUTHORITY EXTENSIONS
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1.key" -out "$1.csr" -subj "/CN=$1"
    openssl x509 -req -in "$1.csr" -CA "$2.pem" -CAkey "$2.key" -days $days -sha256 -out "$1.pem" \
        -extfile <(printf '%s\n' basicConstraints=CA:FALSE "$3")
    rm "$1.csr"
}

authority ca
authority other
leaf server ca subjectAltName=DNS:localhost,IP:127.0.0.1
leaf client ca extendedKeyUsage=clientAuth
leaf stranger other extendedKeyUsage=clientAuth
# An authority's key is not needed again, and its serial file neither.
rm -f ca.key other.key other.pem ./*.srl
