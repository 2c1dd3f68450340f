package journal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sandgate/sandgate/shared/fault"
)

// keyFile lies beside the store and seals what is secret in it.
const keyFile = "key"

const keySize = 32

// keyring is what is derived from the key file.
type keyring struct {
	aead    cipher.AEAD
	digests []byte
}

// openKey reads the key file, or makes it for a store that is new. A store that is not new and has none cannot be
// read, so it is refused rather than given another.
func openKey(dir string, fresh bool) (*keyring, error) {
	path := filepath.Join(dir, keyFile)
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && fresh:
		if err := makeKey(path); err != nil {
			return nil, err
		}
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.New(fault.FailedPrecondition, "the key file %s is missing, and the store holds records that it sealed: put it back", path)
	case err != nil:
		return nil, fmt.Errorf("open the key file: %w", err)
	case info.Mode().Perm() != 0o600:
		return nil, fault.New(fault.FailedPrecondition, "the key file %s has the mode %04o; it must be 0600", path, info.Mode().Perm())
	}
	key, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("open the key file: %w", err)
	}
	if len(key) != keySize {
		return nil, fault.New(fault.FailedPrecondition, "the key file %s has %d bytes, not %d", path, len(key), keySize)
	}
	return newKeyring(key)
}

func newKeyring(key []byte) (*keyring, error) {
	seal, err := hkdf.Key(sha256.New, key, nil, "sandgate sealed records", keySize)
	if err != nil {
		return nil, err
	}
	digests, err := hkdf.Key(sha256.New, key, nil, "sandgate digests", keySize)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(seal)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return &keyring{aead: aead, digests: digests}, nil
}

// makeKey writes a fresh key, durably, before anything is sealed with it. It has its name only once it is whole: a
// gateway that is killed here, or whose disk is full, leaves nothing that the next one takes for a key.
func makeKey(path string) error {
	key := make([]byte, keySize)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	private := path + ".new" // the store is this gateway's alone: what lies there was left
	f, err := os.OpenFile(private, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("make the key file: %w", err)
	}
	if _, err := f.Write(key); err != nil {
		return errors.Join(fmt.Errorf("make the key file: %w", err), f.Close())
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("make the key file: %w", err)
	}
	if err := os.Rename(private, path); err != nil {
		return fmt.Errorf("make the key file: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// seal encrypts, bound to the record it belongs to.
func (k *keyring) seal(kind, id string, plain []byte) ([]byte, error) {
	nonce := make([]byte, k.aead.NonceSize(), k.aead.NonceSize()+len(plain)+k.aead.Overhead())
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	return k.aead.Seal(nonce, nonce, plain, []byte(kind+"\x00"+id)), nil
}

func (k *keyring) open(kind, id string, sealed []byte) ([]byte, error) {
	n := k.aead.NonceSize()
	if len(sealed) < n {
		return nil, fault.New(fault.Internal, "the sealed part of %s %q is damaged", kind, id)
	}
	plain, err := k.aead.Open(nil, sealed[:n], sealed[n:], []byte(kind+"\x00"+id))
	if err != nil {
		return nil, fault.New(fault.Internal, "the sealed part of %s %q is damaged, or was sealed with another key", kind, id)
	}
	return plain, nil
}
