package fetch

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"
)

// SealKeySize is the length of the key under which credentials are kept, in bytes.
const SealKeySize = chacha20poly1305.KeySize

// seal encrypts s for the row of key; another row cannot take it over.
func seal(secret []byte, key string, s Secrets) ([]byte, error) {
	if s.empty() {
		return nil, nil
	}
	plain, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	aead, err := chacha20poly1305.NewX(secret)
	if err != nil {
		return nil, fmt.Errorf("cannot seal credentials: %w", err)
	}
	nonce := make([]byte, aead.NonceSize(), aead.NonceSize()+len(plain)+aead.Overhead())
	rand.Read(nonce)
	return aead.Seal(nonce, nonce, plain, []byte(key)), nil
}

// unseal is the reverse of seal. It fails when the box's key is another one, as after a restored backup.
func unseal(secret []byte, key string, sealed []byte) (Secrets, error) {
	var s Secrets
	if len(sealed) == 0 {
		return s, nil
	}
	aead, err := chacha20poly1305.NewX(secret)
	if err != nil {
		return s, fmt.Errorf("cannot unseal credentials: %w", err)
	}
	if len(sealed) < aead.NonceSize() {
		return s, errors.New("cannot unseal credentials: too short")
	}
	plain, err := aead.Open(nil, sealed[:aead.NonceSize()], sealed[aead.NonceSize():], []byte(key))
	if err != nil {
		return s, errors.New("cannot unseal credentials: the key does not fit")
	}
	return s, json.Unmarshal(plain, &s)
}
