read -r count
read -r numbers
sum=0
for number in $numbers; do
  sum=$((sum + number))
done
echo "$sum"
